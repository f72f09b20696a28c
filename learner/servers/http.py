"""One HTTP client a server, with the token if there is one, and the first word with each."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from shared.access import read_token
from shared.config.rollout import ServerSection
from shared.errors import BoxloopError, ConfigError, ProtocolError, ServerUnavailable, VersionConflict
from shared.wire import ErrorBody

PROBE_TIMEOUT_S = 5.0
"""A probe is answered in constant time, however busy the server is."""


@asynccontextmanager
async def server_clients(section: ServerSection) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of `section.servers`. Proxies of the environment are left out: servers are addressed as they are."""
    token = read_token(section.token_file)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=each.base_url,
                    headers=headers,
                    timeout=section.timeout_s,
                    trust_env=False,
                    limits=httpx.Limits(max_connections=None),  # RolloutPool bounds what is in flight
                )
            )
            for each in section.servers
        ]


class ServerBusy(ServerUnavailable):
    """A server has as much as it takes; it says in how many seconds to ask again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def refusal(server: str, status: int, content: bytes) -> BoxloopError:
    """Turn a refused request into the error it stands for."""
    try:
        body = ErrorBody.model_validate_json(content)
    except ValueError:
        return ProtocolError(f"{server} answered {status}: {content[:300]!r}")
    if body.code == "policy_version":
        return VersionConflict(f"{server} holds other weights: {body.message}")
    if body.retryable:
        return ServerUnavailable(f"{server} answered {status} {body.code}: {body.message}")
    return ProtocolError(f"{server} answered {status} {body.code}: {body.message}")


def check_servers_are_named(section: ServerSection) -> None:
    """Raise ConfigError when there is no server to ask; for a run that decodes."""
    if not section.servers:
        raise ConfigError(
            "custom.extra.rollout_matching.vllm.server.servers: this run decodes answers and names no rollout server; "
            "start one by `boxloop serve` and name it, or start the whole run by `boxloop up`"
        )

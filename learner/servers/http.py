"""One HTTP client a server, with the token if there is one, and the first word with each."""

import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import httpx

from learner.servers.rollouts import RolloutServer
from shared.config.rollout import ServerSection
from shared.errors import ServerNeverReady, ServerUnavailable
from shared.wire import ServerInfo

LOG = logging.getLogger(__name__)

TOKEN_VARIABLE = "BOXLOOP_TOKEN"
ASK_AGAIN_S = 0.5


@asynccontextmanager
async def server_clients(section: ServerSection) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of `section.servers`. Proxies of the environment are left out: servers are addressed as they are."""
    token = section.token_file.read_text().strip() if section.token_file else os.environ.get(TOKEN_VARIABLE, "")
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


async def introduced(servers: Sequence[RolloutServer], patience_s: float) -> list[ServerInfo]:
    """What each server is. One that cannot be reached is asked again: it may be starting, or being restarted.

    Raises ServerNeverReady after `patience_s` seconds, ProtocolError for a server that speaks otherwise.
    """
    deadline = time.monotonic() + patience_s
    return [await _introduced(server, deadline, patience_s) for server in servers]


async def _introduced(server: RolloutServer, deadline: float, patience_s: float) -> ServerInfo:
    told = False
    while True:
        try:
            return await server.info()
        except ServerUnavailable as error:
            if time.monotonic() + ASK_AGAIN_S > deadline:
                raise ServerNeverReady(
                    f"{error}; it was asked for {patience_s:g} s (vllm.server.timeout_s). Start it by `boxloop serve`, "
                    "or correct vllm.server.servers"
                ) from error
            if not told:
                LOG.warning("%s; asking it again for up to %g s (vllm.server.timeout_s)", error, patience_s)
            told = True
        await anyio.sleep(ASK_AGAIN_S)

"""One HTTP client a server, with the token if there is one."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from shared.config.rollout import ServerSection

TOKEN_VARIABLE = "BOXLOOP_TOKEN"


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

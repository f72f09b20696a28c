"""Whether the servers that a configuration names would serve its run: asked by the doctor, before any work is sent."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from learner.servers.http import server_clients
from learner.servers.rollouts import RolloutServer, check_server
from learner.servers.weights import WeightChannel
from shared.access import is_loopback
from shared.config.rollout import ServerSection
from shared.errors import BoxloopError
from shared.findings import Finding, failed, passed, warned
from shared.weight_wire import Transport

TIMEOUT_S = 10.0


async def examine_servers(
    section: ServerSection, folder: Path, transport: Transport, *, needs_shared_folder: bool
) -> list[Finding]:
    """Ask every server of `section`; `folder` is the learner's own checkpoint, `transport` how weights are to come."""
    async with server_clients(section.model_copy(update={"timeout_s": TIMEOUT_S})) as clients:
        return [
            finding for client in clients async for finding in _examine(client, folder, transport, needs_shared_folder)
        ]


async def _examine(
    client: httpx.AsyncClient, folder: Path, transport: Transport, needs_shared_folder: bool
) -> AsyncIterator[Finding]:
    """A server can be in good health while no weights reach it: the run would stand still at its first publish."""
    server = RolloutServer(client, TIMEOUT_S)
    try:
        await server.probe()
        info = await server.info()
        check_server(info, server.name, folder)
    except BoxloopError as error:
        yield failed(
            f"server {server.name}", str(error), "start it by boxloop serve; both sides need one BOXLOOP_TOKEN"
        )
        return
    yield passed(f"server {server.name}", f"ready: {info.engine} with {info.model}")
    check = f"weights of {server.name}"
    try:
        status = await WeightChannel(client, TIMEOUT_S).status()
    except BoxloopError as error:
        yield failed(check, f"it is ready, but takes no weights: {error}", "restart it; look for a proxy in between")
        return
    if f"transport:{transport}" not in info.capabilities:
        yield failed(check, f"it takes none by transport {transport}", "set vllm.sync.weights_root, or transport http")
    elif needs_shared_folder and not is_loopback(client.base_url.host):
        yield warned(
            check,
            f"transport {transport} to {client.base_url.host}",
            "share weights_root with it, or set transport http",
        )
    else:
        yield passed(check, f"{status.phase}, by {transport}")

"""The weight routes of one rollout server."""

from collections.abc import AsyncIterable, Mapping

import httpx

from learner.servers.http import refusal
from shared.errors import WeightSyncFailed
from shared.weight_wire import WeightCommit, WeightCommitted, WeightManifest, WeightRefused, WeightStatus

JSON = {"content-type": "application/json"}


class ServerAway(WeightSyncFailed):
    """A server cannot be reached or is still starting; it may come back and be sent the weights then."""


class WeightChannel:
    """HTTP client of one server's weight transaction. A call may take `timeout_s`.

    Every call raises WeightSyncFailed when the server cannot be reached, refuses, or fails.
    """

    def __init__(self, client: httpx.AsyncClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self.name = str(client.base_url)

    async def status(self, timeout_s: float | None = None) -> WeightStatus:
        """What the server holds and what it waits for; it answers in constant time, however busy it is."""
        return WeightStatus.model_validate_json(await self._call("GET", "/weights", timeout_s=timeout_s))

    async def prepare(self, manifest: WeightManifest) -> None:
        """Announce an update; a refusal has every mismatch that the server found."""
        await self._call("POST", "/weights/prepare", manifest.model_dump_json())

    async def send_chunk(self, offset: int, pieces: AsyncIterable[bytes], num_bytes: int) -> int:
        """Send the next `num_bytes` of what was prepared; returns the offset at which the next chunk goes on."""
        headers = {"content-type": "application/octet-stream", "content-length": str(num_bytes)}
        content = await self._call("PUT", f"/weights/chunk?offset={offset}", pieces, headers)
        return WeightStatus.model_validate_json(content).received_bytes

    async def commit(self, update: WeightCommit) -> WeightCommitted:
        """Load what was prepared and sent."""
        return WeightCommitted.model_validate_json(
            await self._call("POST", "/weights/commit", update.model_dump_json())
        )

    async def abort(self, update: WeightCommit) -> None:
        """Let the server forget what was prepared and sent."""
        await self._call("POST", "/weights/abort", update.model_dump_json())

    async def _call(
        self,
        method: str,
        path: str,
        body: str | AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] = JSON,
        timeout_s: float | None = None,
    ) -> bytes:
        timeout = timeout_s or self._timeout_s
        try:
            response = await self._client.request(method, path, content=body, headers=headers, timeout=timeout)
        except httpx.TransportError as error:
            raise ServerAway(f"{self.name}{path} failed: {error!r}") from error
        if response.status_code == 422:
            raise WeightSyncFailed(f"{self.name} refuses the weights: {mismatches(response.content)}")
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise ServerAway(str(refusal(self.name, response.status_code, response.content)))
        if not response.is_success:
            raise WeightSyncFailed(str(refusal(self.name, response.status_code, response.content)))
        return response.content


def mismatches(content: bytes) -> str:
    """The server's list of mismatches as one line, or its raw words when it is something else."""
    try:
        return "; ".join(WeightRefused.model_validate_json(content).mismatches)
    except ValueError:
        return repr(content[:500])

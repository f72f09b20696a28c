"""The weight routes of one rollout server."""

import httpx

from learner.rollouts.remote import refusal
from shared.errors import WeightSyncFailed
from shared.wire import WeightCommit, WeightCommitted, WeightManifest, WeightRefused, WeightStatus


class WeightChannel:
    """HTTP client of one server's weight transaction. A commit may take `timeout_s`."""

    def __init__(self, client: httpx.AsyncClient, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self.name = str(client.base_url)

    async def status(self) -> WeightStatus:
        return WeightStatus.model_validate_json(await self._call("GET", "/weights"))

    async def prepare(self, manifest: WeightManifest) -> None:
        """Announce an update; raises WeightSyncFailed with every mismatch that the server found."""
        await self._call("POST", "/weights/prepare", manifest.model_dump_json())

    async def commit(self, update: WeightCommit) -> WeightCommitted:
        """Load what was prepared; raises WeightSyncFailed when the server refuses or fails."""
        return WeightCommitted.model_validate_json(
            await self._call("POST", "/weights/commit", update.model_dump_json())
        )

    async def _call(self, method: str, path: str, body: str | None = None) -> bytes:
        try:
            response = await self._client.request(
                method, path, content=body, headers={"content-type": "application/json"}, timeout=self._timeout_s
            )
        except httpx.TransportError as error:
            raise WeightSyncFailed(f"{self.name}{path} failed: {error!r}") from error
        if response.status_code == 422:
            raise WeightSyncFailed(f"{self.name} refuses the weights: {mismatches(response.content)}")
        if not response.is_success:
            raise WeightSyncFailed(str(refusal(self.name, response.status_code, response.content)))
        return response.content


def mismatches(content: bytes) -> str:
    """The server's list of mismatches as one line, or its raw words when it is something else."""
    try:
        return "; ".join(WeightRefused.model_validate_json(content).mismatches)
    except ValueError:
        return repr(content[:500])

"""One way for weights to come in. The learner's side of it has the same name: learner/weight_sync/outlet.py."""

from collections.abc import AsyncIterable
from pathlib import Path
from typing import Protocol

from rollout_server.engines.base import WeightSource
from shared.weight_wire import Transport, WeightManifest


class Incoming(Protocol):
    """One announced update on its way."""

    takes_chunks: bool

    @property
    def received_bytes(self) -> int:
        """How much has come by chunks."""
        ...

    async def append(self, offset: int, pieces: AsyncIterable[bytes]) -> None:
        """Take a chunk, where `takes_chunks`; raises Refusal when it cannot be part of the update."""

    async def verify(self) -> WeightSource:
        """Where the engine loads it from; raises ManifestRefused when it is not what was announced."""
        ...

    def discard(self) -> None:
        """Forget it, with all that has come."""


class Inlet(Protocol):
    """Opens updates."""

    name: Transport

    def open(self, manifest: WeightManifest, root: Path) -> Incoming:
        """Make ready for an announced update; `root` is the server's weights root. Raises Refusal without room."""
        ...

    def remove_left_over(self, root: Path) -> None:
        """Remove what killed servers left under `root`."""

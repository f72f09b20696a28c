"""Outlet `http`: the file is sent to each server in chunks, for servers that do not see the learner's folder."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import torch

from learner.servers.weights import WeightChannel
from learner.weight_sync.weight_file import WrittenWeights, write_weights
from shared.errors import WeightSyncFailed
from shared.weight_wire import SyncMode, Transport, WeightManifest
from shared.wire import PolicyVersion

CHUNK_BYTES = 2**26
"""A quarter of what a server takes as one body."""
PIECE_BYTES = 2**20
CHUNK_ATTEMPTS = 3


@dataclass(frozen=True)
class HttpOffer:
    """A file that is sent in chunks. One that was cut is sent again from where the server says that it stands."""

    written: WrittenWeights
    manifest: WeightManifest
    chunk_bytes: int

    async def deliver(self, channel: WeightChannel) -> None:
        offset = failures = 0
        while left := self.manifest.num_bytes - offset:
            num_bytes = min(self.chunk_bytes, left)
            try:
                offset = await channel.send_chunk(offset, _pieces(self.written.file, offset, num_bytes), num_bytes)
                failures = 0
            except WeightSyncFailed:
                failures += 1
                status = await channel.status()
                if failures == CHUNK_ATTEMPTS or status.staged != self.manifest.policy_version:
                    raise
                offset = status.received_bytes

    def drop(self) -> None:
        self.written.remove()


class HttpOutlet:
    """Writes a file once, and sends it to each server."""

    name: Transport = "http"
    needs_shared_folder = False

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes

    def offer(
        self, root: Path, tensors: Mapping[str, torch.Tensor], version: PolicyVersion, mode: SyncMode
    ) -> HttpOffer:
        written = write_weights(root, tensors, version, mode)
        return HttpOffer(written, written.manifest(self.name), self._chunk_bytes)


async def _pieces(file: Path, offset: int, num_bytes: int) -> AsyncIterator[bytes]:
    """So many bytes of the file, in parts that a socket takes well."""
    async with await anyio.open_file(file, "rb") as stream:
        await stream.seek(offset)
        for start in range(0, num_bytes, PIECE_BYTES):
            yield await stream.read(min(PIECE_BYTES, num_bytes - start))

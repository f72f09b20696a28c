"""How weights reach the servers: written once, then fetched by each server (`file`) or sent to each (`http`)."""

import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import torch

from learner.servers.weights import WeightChannel
from learner.weight_sync.weight_file import save_weights
from shared.errors import WeightSyncFailed
from shared.wire import WEIGHTS_FILE, PolicyVersion, SyncMode, Transport, WeightManifest

CHUNK_BYTES = 2**26
"""A quarter of what a server takes as one body."""
PIECE_BYTES = 2**20
CHUNK_ATTEMPTS = 3


@dataclass(frozen=True)
class WeightUpdate:
    """Weights in a file of the learner's, and what is announced of them."""

    manifest: WeightManifest
    file: Path

    def drop(self) -> None:
        """Remove the file."""
        shutil.rmtree(self.file.parent, ignore_errors=True)


class WeightTransport(Protocol):
    """One way for an update to reach a server."""

    @property
    def name(self) -> Transport: ...

    async def deliver(self, update: WeightUpdate, channel: WeightChannel) -> None:
        """Bring the data of a prepared update to the server; raises WeightSyncFailed."""


class FileTransport:
    """The server reads the learner's file: both see the same folder."""

    name: Transport = "file"

    async def deliver(self, update: WeightUpdate, channel: WeightChannel) -> None:
        """Nothing is left to do."""


class HttpTransport:
    """The file is sent in chunks. One that was cut is sent again from where the server says that it stands."""

    name: Transport = "http"

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes

    async def deliver(self, update: WeightUpdate, channel: WeightChannel) -> None:
        offset = failures = 0
        while left := update.manifest.num_bytes - offset:
            num_bytes = min(self._chunk_bytes, left)
            try:
                offset = await channel.send_chunk(offset, _pieces(update.file, offset, num_bytes), num_bytes)
                failures = 0
            except WeightSyncFailed:
                failures += 1
                status = await channel.status()
                if failures == CHUNK_ATTEMPTS or status.staged != update.manifest.policy_version:
                    raise
                offset = status.received_bytes


async def _pieces(file: Path, offset: int, num_bytes: int) -> AsyncIterator[bytes]:
    """So many bytes of the file, in parts that a socket takes well."""
    async with await anyio.open_file(file, "rb") as stream:
        await stream.seek(offset)
        for start in range(0, num_bytes, PIECE_BYTES):
            yield await stream.read(min(PIECE_BYTES, num_bytes - start))


TRANSPORTS: Mapping[Transport, WeightTransport] = {"file": FileTransport(), "http": HttpTransport()}


def write_update(
    root: Path, tensors: Mapping[str, torch.Tensor], version: PolicyVersion, mode: SyncMode, transport: Transport
) -> WeightUpdate:
    """Write `tensors` into a folder of their own under `root`.

    Raises WeightSyncFailed when the file cannot be written; nothing of it is left then.
    """
    folder = root / f"{version.incarnation}-{version.step}-{mode}"
    file = folder / WEIGHTS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        saved = save_weights(file, tensors)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        needed = sum(tensor.nbytes for tensor in tensors.values())
        raise WeightSyncFailed(
            f"writing {needed} bytes of weights into {root} failed: {error}; free some space there, or set "
            "custom.extra.rollout_matching.vllm.sync.weights_root to a folder with more"
        ) from error
    manifest = WeightManifest(
        policy_version=version,
        mode=mode,
        transport=transport,
        tensors=saved.tensors,
        num_bytes=saved.num_bytes,
        digest=saved.digest,
        folder=folder.name if transport == "file" else None,
    )
    return WeightUpdate(manifest, file)

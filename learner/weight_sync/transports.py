"""How weights reach the servers: written once, then fetched by each server (`file`) or sent to each (`http`)."""

import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from learner.weight_sync.client import WeightChannel
from shared.digest import file_digest
from shared.errors import WeightSyncFailed
from shared.wire import WEIGHTS_FILE, Dtype, PolicyVersion, SyncMode, TensorSpec, Transport, WeightManifest

CHUNK_BYTES = 2**26
"""A quarter of what a server takes as one body."""
BLOCK_BYTES, PIECE_BYTES = 2**23, 2**20
CHUNK_ATTEMPTS = 3

_DTYPE_NAMES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


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
    """So many bytes of the file, read in large blocks and handed on in parts that a socket takes well."""
    async with await anyio.open_file(file, "rb") as stream:
        await stream.seek(offset)
        for start in range(0, num_bytes, BLOCK_BYTES):
            block = memoryview(await stream.read(min(BLOCK_BYTES, num_bytes - start)))
            for at in range(0, len(block), PIECE_BYTES):
                yield bytes(block[at : at + PIECE_BYTES])


TRANSPORTS: Mapping[Transport, WeightTransport] = {"file": FileTransport(), "http": HttpTransport()}


def write_update(
    root: Path, tensors: Mapping[str, torch.Tensor], version: PolicyVersion, mode: SyncMode, transport: Transport
) -> WeightUpdate:
    """Write `tensors` into a folder of their own under `root`.

    They go from where they are into the file, without a copy of all in between. Raises WeightSyncFailed when the file
    cannot be written; nothing of it is left then.
    """
    folder = root / f"{version.incarnation}-{version.step}-{mode}"
    file = folder / WEIGHTS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        num_bytes, digest = file.stat().st_size, file_digest(file)
    except (OSError, SafetensorError) as error:
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
        tensors=tuple(tensor_spec(name, tensor) for name, tensor in tensors.items()),
        num_bytes=num_bytes,
        digest=digest,
        folder=folder.name if transport == "file" else None,
    )
    return WeightUpdate(manifest, file)


def tensor_spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    """Name, shape and dtype of a tensor as the wire names them."""
    return TensorSpec(
        name=name,
        shape=tuple(tensor.shape),
        dtype=_DTYPE_NAMES[tensor.dtype],
        num_bytes=tensor.nbytes,
    )

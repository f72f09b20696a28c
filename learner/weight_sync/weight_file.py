"""Writing weights as a safetensors file, summed while they are written."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.digest import RunningDigest
from shared.errors import WeightSyncFailed
from shared.safetensors_header import write_header
from shared.weight_wire import WEIGHTS_FILE, Dtype, SyncMode, TensorSpec, Transport, WeightManifest
from shared.wire import PolicyVersion

_DTYPES: Mapping[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class SavedWeights:
    """What is in a file, its size in bytes, and its digest (see shared/digest.py)."""

    tensors: tuple[TensorSpec, ...]
    num_bytes: int
    digest: str


@dataclass(frozen=True)
class WrittenWeights:
    """One version of the weights in a file, in a folder of its own."""

    file: Path
    saved: SavedWeights
    version: PolicyVersion
    mode: SyncMode

    def manifest(self, transport: Transport, folder: str | None = None) -> WeightManifest:
        """What servers are told of it; `folder` is where they find it under the weights root, if they read it there."""
        return WeightManifest(
            policy_version=self.version,
            mode=self.mode,
            transport=transport,
            tensors=self.saved.tensors,
            num_bytes=self.saved.num_bytes,
            digest=self.saved.digest,
            folder=folder,
        )

    def remove(self) -> None:
        shutil.rmtree(self.file.parent, ignore_errors=True)


def write_weights(root: Path, tensors: Mapping[str, Tensor], version: PolicyVersion, mode: SyncMode) -> WrittenWeights:
    """Write `tensors` into a folder of their own under `root`.

    Raises WeightSyncFailed when the file cannot be written; nothing of it is left then.
    """
    folder = root / f"{version.incarnation}-{version.step}-{mode}"
    file = folder / WEIGHTS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return WrittenWeights(file, save_weights(file, tensors), version, mode)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        needed = sum(tensor.nbytes for tensor in tensors.values())
        raise WeightSyncFailed(
            f"writing {needed} bytes of weights into {root} failed: {error}; free some space there, or set "
            "custom.extra.rollout_matching.vllm.sync.weights_root to a folder with more"
        ) from error


def save_weights(file: Path, tensors: Mapping[str, Tensor]) -> SavedWeights:
    """Write a safetensors file, over one that is there.

    Each tensor goes from where it is into the file. Copies, from a GPU or of what is not contiguous, are of two tensors
    at most at a time. Raises OSError.
    """
    # The widest first, so that each begins at a multiple of its own items' size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    specs = tuple(_spec(name, tensor) for name, tensor in ordered.items())
    header = write_header(specs)
    num_bytes = len(header) + sum(tensor.nbytes for tensor in ordered.values())
    digest = RunningDigest()
    with file.open("wb") as stream, ThreadPoolExecutor(1) as summing:
        for part in _parts(header, ordered.values()):
            summed = summing.submit(digest.after, part)  # on another core
            stream.write(part)
            digest = summed.result()
    return SavedWeights(specs, num_bytes, digest.hexdigest())


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=_DTYPES[tensor.dtype], num_bytes=tensor.nbytes)


def _parts(header: bytes, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in tensors:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

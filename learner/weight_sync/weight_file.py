"""Writing weights as a safetensors file, summed while they are written."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.digest import RunningDigest
from shared.wire import Dtype, TensorSpec

ALIGNMENT = 8
_DTYPES: dict[torch.dtype, tuple[Dtype, str]] = {
    torch.float32: ("float32", "F32"),
    torch.bfloat16: ("bfloat16", "BF16"),
    torch.float16: ("float16", "F16"),
}
"""What the wire and what safetensors call them."""


@dataclass(frozen=True)
class SavedWeights:
    """What is in a file, its size in bytes, and its digest (see shared/digest.py)."""

    tensors: tuple[TensorSpec, ...]
    num_bytes: int
    digest: str


def save_weights(file: Path, tensors: Mapping[str, Tensor]) -> SavedWeights:
    """Write a safetensors file, over one that is there.

    Each tensor goes from where it is into the file. Copies, from a GPU or of what is not contiguous, are of two tensors
    at most at a time. Raises OSError.
    """
    # The widest first, so that each begins at a multiple of its own items' size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header = _header(ordered)
    num_bytes = len(header) + sum(tensor.nbytes for tensor in ordered.values())
    digest = RunningDigest(num_bytes)
    with file.open("wb") as stream, ThreadPoolExecutor(1) as summing:
        for part in _parts(header, ordered.values()):
            summed = summing.submit(digest.after, part)  # on another core
            stream.write(part)
            digest = summed.result()
    specs = tuple(_spec(name, tensor) for name, tensor in ordered.items())
    return SavedWeights(specs, num_bytes, digest.hexdigest())


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    dtype, _ = _DTYPES[tensor.dtype]
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=dtype, num_bytes=tensor.nbytes)


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """Its length in 8 bytes, little-endian, then what lies where as JSON, filled up with spaces."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        _, dtype = _DTYPES[tensor.dtype]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    told = json.dumps(entries).encode()
    told += b" " * (-len(told) % ALIGNMENT)
    return len(told).to_bytes(8, "little") + told


def _parts(header: bytes, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in tensors:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

"""Is what is announced, and then delivered, what the model takes? Checks of a weight update, without torch."""

import math
from pathlib import Path

import anyio.to_thread

from rollout_server.engines.base import ModelTensors
from rollout_server.refusal import ManifestRefused
from shared.digest import file_digest
from shared.safetensors_header import ITEM_BYTES, read_shapes
from shared.weight_wire import TensorSpec, WeightManifest


def manifest_mismatches(manifest: WeightManifest, expected: ModelTensors, transports: tuple[str, ...]) -> list[str]:
    """Every way in which `manifest` does not describe an update of the model; empty when it does."""
    found = []
    if manifest.transport not in transports:
        found.append(f"transport {manifest.transport} is not served here, only {', '.join(transports) or 'none'}")
    sent = {tensor.name: tensor for tensor in manifest.tensors}
    if len(sent) != len(manifest.tensors):
        found.append("a tensor is listed twice")
    if manifest.mode == "full":
        found += [f"{name} is missing" for name in expected.shapes if name not in sent]
    else:
        found += [
            f"{name} is missing, the model keeps it fused with {', '.join(sorted(group & sent.keys()))}"
            for group in expected.fused
            if not group.isdisjoint(sent)
            for name in sorted(group - sent.keys())
        ]
    for name, tensor in sent.items():
        shape = expected.shapes.get(expected.tied.get(name, name))
        if shape is None:
            found.append(f"{name} is not in the model")
        elif tensor.shape != shape:
            found.append(f"{name} has shape {list(tensor.shape)}, the model {list(shape)}")
        elif tensor.num_bytes != math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]:
            found.append(f"{name} of {list(tensor.shape)} {tensor.dtype} cannot have {tensor.num_bytes} bytes")
    return found


async def check_file(file: Path, manifest: WeightManifest, digest: str | None = None) -> None:
    """Raise ManifestRefused with every mismatch of `file_mismatches`; reads on a thread."""
    found = await anyio.to_thread.run_sync(file_mismatches, file, manifest, digest)
    if found:
        raise ManifestRefused(tuple(found))


def file_mismatches(file: Path, manifest: WeightManifest, digest: str | None = None) -> list[str]:
    """Every way in which the delivered safetensors `file` is not what was announced; empty when it is.

    It is read for its digest, unless that is known.
    """
    if not file.is_file():
        return [f"{file} does not exist"]
    size = file.stat().st_size
    if size != manifest.num_bytes:
        return [f"{file} has {size} bytes, announced are {manifest.num_bytes}"]
    digest = digest or file_digest(file)
    if digest != manifest.digest:
        return [f"{file} has digest {digest}, announced is {manifest.digest}"]
    return _header_mismatches(file, manifest.tensors)


def _header_mismatches(file: Path, announced: tuple[TensorSpec, ...]) -> list[str]:
    """Compare with the file's own header."""
    try:
        held = read_shapes(file)
    except ValueError as error:
        return [f"{file} is not a safetensors file: {error!r}"]
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {tensor.name: (tensor.dtype, tensor.shape) for tensor in announced}
    return [
        f"{name} is {held.get(name, 'missing')} in the file, announced is {wanted.get(name, 'nothing')}"
        for name in sorted(held.keys() | wanted.keys())
        if held.get(name) != wanted.get(name)
    ]

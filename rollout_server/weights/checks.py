"""Is what is announced, and then delivered, what the model takes? Checks of a weight update, without torch."""

import json
import math
from pathlib import Path

from rollout_server.engines.base import ModelTensors
from rollout_server.refusal import ManifestRefused
from shared.digest import file_digest
from shared.wire import WEIGHTS_FILE, TensorSpec, WeightManifest

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
MAX_HEADER_BYTES = 2**26


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


def shared_file(manifest: WeightManifest, weights_root: Path) -> Path:
    """Where an update by transport file lies; raises ManifestRefused for a folder that is not under `weights_root`."""
    file = (weights_root / (manifest.folder or "") / WEIGHTS_FILE).resolve()
    if not manifest.folder or not file.is_relative_to(weights_root.resolve()):
        raise ManifestRefused((f"folder {manifest.folder!r} is not under the server's weights root {weights_root}",))
    return file


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
    """Compare with the file's own header: 8 bytes of length, little-endian, then JSON by tensor name."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
        held = {
            name: (SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{file} is not a safetensors file: {error!r}"]
    wanted = {tensor.name: (tensor.dtype, tensor.shape) for tensor in announced}
    return [
        f"{name} is {held.get(name, 'missing')} in the file, announced is {wanted.get(name, 'nothing')}"
        for name in sorted(held.keys() | wanted.keys())
        if held.get(name) != wanted.get(name)
    ]

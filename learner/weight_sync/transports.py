"""How weights reach the servers. `file`: a safetensors file in a versioned folder that both sides can read."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from shared.wire import WEIGHTS_FILE, Dtype, PolicyVersion, SyncMode, TensorSpec, WeightManifest

_DTYPE_NAMES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class FileTransport:
    """Writes each version to its own folder under `root` and keeps the newest only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, tensors: Mapping[str, torch.Tensor], version: PolicyVersion, mode: SyncMode) -> WeightManifest:
        """Write `tensors` whole, then make the folder visible by a rename; returns what to announce."""
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        folder = self.root / f"{version.incarnation}-{version.step}"
        staging = folder.with_suffix(".partial")
        for stale in (staging, folder):
            shutil.rmtree(stale, ignore_errors=True)
        staging.mkdir(parents=True)
        (staging / WEIGHTS_FILE).write_bytes(data)
        os.rename(staging, folder)
        return WeightManifest(
            policy_version=version,
            mode=mode,
            transport="file",
            tensors=tuple(tensor_spec(name, tensor) for name, tensor in tensors.items()),
            num_bytes=len(data),
            digest=hashlib.sha256(data).hexdigest(),
            folder=folder.name,
        )

    def drop(self, manifest: WeightManifest) -> None:
        """Remove a version that every server has loaded."""
        shutil.rmtree(self.root / str(manifest.folder), ignore_errors=True)


def tensor_spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    """Name, shape and dtype of a tensor as the wire names them."""
    return TensorSpec(
        name=name,
        shape=tuple(tensor.shape),
        dtype=_DTYPE_NAMES[tensor.dtype],
        num_bytes=tensor.numel() * tensor.element_size(),
    )

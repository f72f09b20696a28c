"""Outlet `file`: the server reads the learner's file, as both see the same folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from learner.servers.weights import WeightChannel
from learner.weight_sync.weight_file import WrittenWeights, write_weights
from shared.weight_wire import SyncMode, Transport, WeightManifest
from shared.wire import PolicyVersion


@dataclass(frozen=True)
class FileOffer:
    """A file, and where it lies under the weights root."""

    written: WrittenWeights
    manifest: WeightManifest

    async def deliver(self, channel: WeightChannel) -> None:
        """Nothing is left to do."""

    def drop(self) -> None:
        self.written.remove()


class FileOutlet:
    """Writes a file once for all servers."""

    name: Transport = "file"
    needs_shared_folder = True

    def offer(
        self, root: Path, tensors: Mapping[str, torch.Tensor], version: PolicyVersion, mode: SyncMode
    ) -> FileOffer:
        written = write_weights(root, tensors, version, mode)
        return FileOffer(written, written.manifest(self.name, folder=written.file.parent.name))

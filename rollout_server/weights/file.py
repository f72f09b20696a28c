"""Inlet `file`: the learner's file is read where the learner wrote it."""

from collections.abc import AsyncIterable
from pathlib import Path

from rollout_server.engines.base import WeightFile
from rollout_server.refusal import ManifestRefused
from rollout_server.weights.checks import check_file
from shared.weight_wire import WEIGHTS_FILE, Transport, WeightManifest


class SharedFile:
    """A file under the weights root, which stays the learner's."""

    takes_chunks = False
    received_bytes = 0

    def __init__(self, manifest: WeightManifest, root: Path) -> None:
        self._manifest = manifest
        self._root = root

    async def append(self, offset: int, pieces: AsyncIterable[bytes]) -> None:
        raise NotImplementedError("a shared file takes no chunks")

    async def verify(self) -> WeightFile:
        file = shared_file(self._manifest, self._root)
        await check_file(file, self._manifest)
        return WeightFile(file)

    def discard(self) -> None:
        """The file is the learner's."""


class FileInlet:
    """Opens what lies in a folder that the learner shares."""

    name: Transport = "file"

    def open(self, manifest: WeightManifest, root: Path) -> SharedFile:
        return SharedFile(manifest, root)

    def remove_left_over(self, root: Path) -> None:
        """Learners remove what is theirs."""


def shared_file(manifest: WeightManifest, root: Path) -> Path:
    """Where an announced update lies; raises ManifestRefused for a folder that is not under `root`."""
    file = (root / (manifest.folder or "") / WEIGHTS_FILE).resolve()
    if not manifest.folder or not file.is_relative_to(root.resolve()):
        raise ManifestRefused((f"folder {manifest.folder!r} is not under the server's weights root {root}",))
    return file

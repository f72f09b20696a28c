"""A place for a run's folder that can be made full."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.faults import learner_of

SIZE = 128 * 2**20
LEFT = 2**19
"""Bytes that a full disk still has: lines of logs find room, a checkpoint does not."""
MOST_OF_A_FILE = 2**20


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own, or, where none may be mounted, a bound on the files that the learner writes."""

    folder: Path
    is_mounted: bool

    @property
    def says(self) -> str:
        """What the system calls it when a file finds no room."""
        return os.strerror(errno.ENOSPC if self.is_mounted else errno.EFBIG)

    def fill(self, run: Any) -> None:
        """Leave no room for a checkpoint of `run`."""
        learner = learner_of(run)
        assert learner is not None
        if not self.is_mounted:
            resource.prlimit(learner, resource.RLIMIT_FSIZE, (MOST_OF_A_FILE, MOST_OF_A_FILE))
            return
        free = os.statvfs(self.folder)
        with (self.folder / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_bsize - LEFT)

    def free(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mounted at `folder` while the block runs; only root may do that, and not everywhere."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield SmallDisk(folder, is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

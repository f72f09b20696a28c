"""Weights that learners left in a folder when they were killed."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".lock"


@contextmanager
def lock_folder(root: Path, incarnation: str) -> Iterator[None]:
    """Hold a lock on `root` in the name of a learner, and remove the folders of those that died holding one.

    The system frees the lock of a process that ends, however that happens. So a learner that shares the folder, as an
    evaluation beside a training may, loses nothing. Raises OSError for a folder that cannot be written or locked.
    """
    root.mkdir(parents=True, exist_ok=True)
    for other in root.glob(f"*{SUFFIX}"):
        _remove_if_dead(root, other)
    own = root / f"{incarnation}{SUFFIX}"
    with own.with_suffix(".new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(lock.name).rename(own)  # so that nobody sees it unlocked
        try:
            yield
        finally:
            own.unlink(missing_ok=True)


def _remove_if_dead(root: Path, lock_file: Path) -> None:
    try:
        with lock_file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for folder in root.glob(f"{lock_file.name.removesuffix(SUFFIX)}-*"):
                shutil.rmtree(folder, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        return  # its owner lives, or another learner was faster

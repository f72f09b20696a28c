"""A run's own folder: written by one run at a time, and found writable before anything is started."""

import fcntl
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import ConfigError

LOG = logging.getLogger(__name__)

OUTPUT_DIR = "training.output_dir"
LOCK_FILE = "run.lock"
LOCK_VARIABLE = "BOXLOOP_RUN_LOCK_FD"
"""Environment variable with the number of the inherited descriptor that holds the lock."""


@contextmanager
def lock_run(folder: Path) -> Iterator[int | None]:
    """Hold `folder` for one run, and give the descriptor that holds it, which a child may inherit.

    The system frees the lock when the last process that has the descriptor ends, however it ends: a supervisor that is
    killed leaves it to its learner, and nobody has to clean up. A process that was given the lock by its supervisor
    keeps that. On a file system without locks there is a warning and no lock. Raises ConfigError while another run
    holds the folder, naming that run's host and process.
    """
    inherited = os.environ.pop(LOCK_VARIABLE, None)
    if inherited is not None:
        os.set_inheritable(int(inherited), False)
        yield int(inherited)
        return
    with open_folder(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(_told(folder, os.pread(file, 1000, 0).decode("utf-8", "replace"))) from None
        except OSError as error:
            LOG.warning("%s cannot be locked (%s): see that no other run writes there", folder, error.strerror)
            yield None
            return
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield file


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Make a run's folder, and give its lock file. Raises ConfigError for one that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unusable(folder, error) from None
    try:
        yield file
    finally:
        os.close(file)


def check_writable(folder: Path, key: str = OUTPUT_DIR) -> str:
    """Try to write where `folder` is or will be, and say so; nothing is left.

    Raises ConfigError, naming the key that says the folder, when it can't be.
    """
    resolved = Path(os.path.realpath(folder))
    above = next(path for path in (resolved, *resolved.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise _unusable(folder, error, key) from None
    return f"{folder} can be written" if above == resolved else f"{folder} can be made"


def _told(folder: Path, holder: str) -> str:
    who = holder.strip() or "another process"
    return (
        f"{OUTPUT_DIR}: {folder} is being written by {who}; wait for that run or stop it, or give this one a "
        "folder of its own"
    )


def _unusable(folder: Path, error: OSError, key: str = OUTPUT_DIR) -> ConfigError:
    return ConfigError(f"{key}: {folder} cannot be written: {error.strerror}; name another folder")

"""Folders that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from shared.errors import BoxloopError


class NotWritten(BoxloopError):
    """The disk did not take a folder; nothing of it is left."""


@contextmanager
def whole_folder(final: Path, num_bytes: int = 0) -> Iterator[Path]:
    """A folder to write files into; when the block ends well it is on the disk as `final`, in place of what was there.

    When the block fails it is removed; what a killed process left is removed by the next one. Raises NotWritten when
    the disk takes no more, with `num_bytes`, about what the files need.
    """
    final = Path(os.path.realpath(final))  # a link stays one: what it leads to is replaced
    partial = final.parent / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(final.parent)
    except (OSError, SafetensorError) as error:
        raise NotWritten(_told(final, num_bytes, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _told(final: Path, num_bytes: int, error: Exception) -> str:
    if not final.parent.is_dir() or not os.access(final.parent, os.W_OK):
        return f"{final} cannot be written: {error}; name another folder"
    free = shutil.disk_usage(final.parent).free
    return (
        f"{final} cannot be written: {error}. It needs about {num_bytes / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are "
        "free there. Nothing of it is left and older ones are whole: make room and resume; training.save_total_limit "
        "keeps fewer checkpoints"
    )


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

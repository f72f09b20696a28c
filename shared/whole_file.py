"""Files that are written whole or not at all."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_LONGEST_NAME = 200


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into; when the block ends well it stands at `path`, in place of what was there.

    When the block fails there is nothing new. A link stays one: what it leads to is replaced. A device or a pipe, such
    as /dev/stdout, is written to and stays what it is. Raises OSError.
    """
    if _is_no_file(path):
        with path.open("wb") as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    partial = target.with_name(f"{target.name[:_LONGEST_NAME]}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as file:
        file.write(content)


def _is_no_file(path: Path) -> bool:
    """Whether what stands at `path` must not be replaced: a device, a pipe, or another process's open file."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False

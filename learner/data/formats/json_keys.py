"""A look into a JSON file, however large: which keys stand somewhere in it."""

import mmap
from collections.abc import Iterable
from pathlib import Path

_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")


def keys_in(path: Path, keys: Iterable[str]) -> set[str]:
    """Those of `keys` that a file has, in quotes; none of one that cannot be read."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return {key for key in keys if any(content.find(f'"{key}"'.encode(name)) >= 0 for name in _ENCODINGS)}
    except (OSError, ValueError):  # a folder; an empty file
        return set()

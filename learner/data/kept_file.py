"""A file that stays the one it was when it was opened, whatever becomes of its name."""

import os
import weakref
from pathlib import Path


class KeptFile:
    """Reads at any place of a file, from any thread, for as long as this object lives.

    An editor that saves, or `sed -i`, puts another file under the name: the one that was opened is still read. What is
    written into the file itself shows, and can only be told.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError for a file that cannot be read."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._first = os.fstat(self._descriptor)
        self._told: set[str] = set()

    def read(self, offset: int, num_bytes: int) -> bytes:
        """So many bytes from `offset` on, fewer at the end of the file."""
        return os.pread(self._descriptor, num_bytes, offset)

    def news(self) -> str:
        """What has happened to the file since it was opened, each once; empty for nothing new."""
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._first.st_size, self._first.st_mtime_ns):
            return self._once(f"{self.path} has been written to since it was opened; records may be broken or others")
        try:
            named = os.stat(self.path)
        except OSError:
            return self._once(f"{self.path} is gone; what was opened at the start is still read")
        if (named.st_dev, named.st_ino) != (self._first.st_dev, self._first.st_ino):
            return self._once(f"{self.path} is another file now; the one that was opened at the start is still read")
        return ""

    def _once(self, message: str) -> str:
        if message in self._told:
            return ""
        self._told.add(message)
        return message

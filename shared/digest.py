"""The digest of a weight file: a weighted sum of the words of each page, all folded into one.

It guards against data that was cut, mixed up or damaged on its way between two processes that trust each other, not
against a forger: whoever may send weights holds the token. A change within one word is found for certain, because the
weights are odd and so have an inverse modulo 2^64; other damage to a page is missed about once in 2^64 times. It costs
a sixteenth of a second for a gigabyte, a quarter of what reading it takes, so that whoever moves weights can sum them
on the way.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE_WORDS = 512
PAGE_BYTES = 8 * PAGE_WORDS
PIECE_BYTES = 2**20
"""Read and summed at once: small enough to stay in a core's own cache in between."""
NUM_THREADS = min(8, os.cpu_count() or 1)
_WEIGHTS = np.arange(1, 2 * PAGE_WORDS, 2, dtype=np.uint64)


class RunningDigest:
    """The digest of data of `num_bytes` that is seen in order, part by part; of the whole it equals `file_digest`.

    Sha256, hexadecimal, over the size and then, page by page, Σ (2i + 1) · word i modulo 2^64. A page is 512 words, the
    last one filled up with zeros; words, sums and the size are 8 bytes each, little-endian.
    """

    def __init__(self, num_bytes: int) -> None:
        self._folded = hashlib.sha256(num_bytes.to_bytes(8, "little"))
        self._begun = b""  # a page that is not whole yet

    def after(self, part: memoryview) -> "RunningDigest":
        """The digest when the next part, of any number of bytes, has been seen too."""
        digest = copy(self)
        digest._folded = self._folded.copy()
        digest._add(part)
        return digest

    def hexdigest(self) -> str:
        """Of what was seen so far."""
        folded = self._folded.copy()
        folded.update(_page_sums(self._begun))
        return folded.hexdigest()

    def _add(self, part: memoryview) -> None:
        if self._begun:
            missing = PAGE_BYTES - len(self._begun)
            self._begun, part = self._begun + part[:missing], part[missing:]
            if len(self._begun) < PAGE_BYTES:
                return
            self._folded.update(_page_sums(self._begun))
        whole = len(part) // PAGE_BYTES * PAGE_BYTES
        for start in range(0, whole, PIECE_BYTES):
            self._folded.update(_page_sums(part[start : min(start + PIECE_BYTES, whole)]))
        self._begun = bytes(part[whole:])


def file_digest(file: Path) -> str:
    """The digest of a file's content. Blocks while it reads, in several threads; raises OSError."""
    with file.open("rb", buffering=0) as stream, ThreadPoolExecutor(NUM_THREADS) as threads:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        for sums in threads.map(partial(_sums_at, stream.fileno()), range(0, size, PIECE_BYTES)):
            digest.update(sums)
        return digest.hexdigest()


def _sums_at(descriptor: int, start: int) -> bytes:
    piece = memoryview(bytearray(PIECE_BYTES))
    filled = 0
    while filled < PIECE_BYTES and (read := os.preadv(descriptor, [piece[filled:]], start + filled)):
        filled += read
    return _page_sums(piece[:filled])


def _page_sums(data: bytes | memoryview) -> bytes:
    """The sums of the pages of `data`; the last one may be cut."""
    whole, rest = divmod(len(data), PAGE_BYTES)
    if rest:
        data = bytes(data).ljust((whole + 1) * PAGE_BYTES, b"\0")
    pages = np.frombuffer(data, "<u8").reshape(-1, PAGE_WORDS)
    sums: NDArray[np.uint64] = np.einsum("ij,j->i", pages, _WEIGHTS)
    return sums.astype("<u8", copy=False).tobytes()

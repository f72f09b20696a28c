"""The digest of a weight file: a weighted sum of the words of each page, all folded into one.

It guards against data that was cut, mixed up or damaged on its way between two processes that trust each other, not
against a forger: whoever may send weights holds the token. A change within one word is found for certain, because the
weights are odd and so have an inverse modulo 2^64; other damage to a page is missed about once in 2^64 times. It costs
little more than reading does, where a CRC-32 costs twice as much and a sha256 four times, and pieces are summed side by
side.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

PAGE_WORDS = 512
PIECE_BYTES = 2**20
"""Read and summed at once: small enough to stay in a core's own cache in between."""
NUM_THREADS = min(8, os.cpu_count() or 1)
_WEIGHTS = np.arange(1, 2 * PAGE_WORDS, 2, dtype=np.uint64)


def file_digest(file: Path) -> str:
    """Sha256, hexadecimal, over the file's size and then, page by page, Σ (2i + 1) · word i modulo 2^64.

    A page is 512 words, the last one filled up with zeros; words, sums and the size are 8 bytes each, little-endian.
    Blocks while it reads; raises OSError.
    """
    with file.open("rb", buffering=0) as stream, ThreadPoolExecutor(NUM_THREADS) as threads:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        for sums in threads.map(partial(_page_sums, stream.fileno()), range(0, size, PIECE_BYTES)):
            digest.update(sums)
        return digest.hexdigest()


def _page_sums(descriptor: int, start: int) -> bytes:
    piece = np.zeros(PIECE_BYTES, np.uint8)
    filled = 0
    while filled < PIECE_BYTES and (read := os.preadv(descriptor, [piece[filled:].data], start + filled)):
        filled += read
    page_bytes = 8 * PAGE_WORDS
    pages = piece[: -(-filled // page_bytes) * page_bytes].view("<u8").reshape(-1, PAGE_WORDS)
    return np.einsum("ij,j->i", pages, _WEIGHTS).astype("<u8").tobytes()

"""The digest of a weight file: XXH3 of 128 bits, as hexadecimal text.

It guards against data that was cut, mixed up or damaged on its way between two processes that trust each other, not
against a forger: whoever may send weights holds the token.
"""

from pathlib import Path

import xxhash

PIECE_BYTES = 2**18
"""Read and digested at once: small enough to stay in a core's own cache in between."""


class RunningDigest:
    """The digest of data that is seen in order, part by part; of the whole it equals `file_digest`."""

    def __init__(self) -> None:
        self._seen = xxhash.xxh3_128()

    def after(self, part: memoryview) -> "RunningDigest":
        """The digest when the next part, of any number of bytes, has been seen too; this one stays as it is."""
        digest = RunningDigest()
        digest._seen = self._seen.copy()
        digest._seen.update(part)
        return digest

    def hexdigest(self) -> str:
        """Of what was seen so far."""
        return self._seen.hexdigest()


def file_digest(file: Path) -> str:
    """The digest of a file's content. Blocks while it reads; raises OSError."""
    digest, piece = xxhash.xxh3_128(), memoryview(bytearray(PIECE_BYTES))
    with file.open("rb", buffering=0) as stream:
        while num_read := stream.readinto(piece):
            digest.update(piece[:num_read])
    return digest.hexdigest()

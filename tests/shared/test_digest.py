import hashlib
import random
import zlib
from pathlib import Path

import pytest

from shared.digest import PIECE_BYTES, file_digest


def digest_of(folder: Path, data: bytes) -> str:
    file = folder / "data"
    file.write_bytes(data)
    return file_digest(file)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 12345])
def test_it_folds_the_crcs_of_the_pieces_in_order(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    pieces = [data[start : start + PIECE_BYTES] for start in range(0, size, PIECE_BYTES)]
    folded = b"".join(zlib.crc32(piece).to_bytes(4, "big") for piece in pieces)
    assert digest_of(tmp_path, data) == hashlib.sha256(folded).hexdigest()


def test_any_damage_changes_it(tmp_path: Path) -> None:
    whole = random.Random(0).randbytes(PIECE_BYTES + 1000)
    flipped = bytearray(whole)
    flipped[PIECE_BYTES - 7] ^= 0x10
    swapped = whole[PIECE_BYTES:] + whole[:PIECE_BYTES]
    zeroed = whole[:-512] + bytes(512)
    damaged = [bytes(flipped), swapped, zeroed, whole[:-1], whole + b"\0"]
    assert len({digest_of(tmp_path, data) for data in (whole, *damaged)}) == 6

import hashlib
import random
from pathlib import Path

import pytest

from shared.digest import PIECE_BYTES, RunningDigest, file_digest

PAGE = 4096
ROOM = 2**64


def digest_of(folder: Path, data: bytes) -> str:
    file = folder / "data"
    file.write_bytes(data)
    return file_digest(file)


def expected(data: bytes) -> str:
    """By the definition, in plain integers."""
    digest = hashlib.sha256(len(data).to_bytes(8, "little"))
    for start in range(0, len(data), PAGE):
        page = data[start : start + PAGE].ljust(PAGE, b"\0")
        words = [int.from_bytes(page[at : at + 8], "little") for at in range(0, PAGE, 8)]
        digest.update((sum((2 * i + 1) * word for i, word in enumerate(words)) % ROOM).to_bytes(8, "little"))
    return digest.hexdigest()


@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 7, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 12345])
def test_it_folds_the_weighted_sums_of_the_pages_in_order(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert digest_of(tmp_path, data) == expected(data)


@pytest.mark.parametrize("longest", [1, 100, PAGE, 3 * PAGE + 5, 3 * PIECE_BYTES])
def test_data_that_is_seen_part_by_part_has_the_digest_of_the_whole(longest: int) -> None:
    rng = random.Random(longest)
    data = memoryview(rng.randbytes(min(200 * longest, 4 * PIECE_BYTES + 77)))
    digest, start = RunningDigest(len(data)), 0
    while start < len(data):
        end = start + rng.randint(0, longest)
        digest, start = digest.after(data[start:end]), end
    assert digest.hexdigest() == expected(bytes(data))


def test_a_part_that_is_taken_back_leaves_nothing() -> None:
    data = memoryview(random.Random(0).randbytes(2 * PAGE + 9))
    digest = RunningDigest(len(data)).after(data[:100])
    digest.after(data[5:PAGE])  # of a sender that is not heard
    assert digest.after(data[100:]).hexdigest() == expected(bytes(data))


def test_any_flipped_bit_changes_it(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = rng.randbytes(3 * PAGE)
    before = digest_of(tmp_path, whole)
    for bit in range(8):
        for _ in range(25):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << bit
            assert digest_of(tmp_path, bytes(damaged)) != before


def test_what_is_cut_mixed_up_or_blank_changes_it(tmp_path: Path) -> None:
    whole = random.Random(0).randbytes(2 * PIECE_BYTES + 3 * PAGE)
    pages_swapped = whole[PAGE : 2 * PAGE] + whole[:PAGE] + whole[2 * PAGE :]
    words_swapped = whole[8:16] + whole[:8] + whole[16:]
    pieces_swapped = whole[PIECE_BYTES : 2 * PIECE_BYTES] + whole[:PIECE_BYTES] + whole[2 * PIECE_BYTES :]
    blank = whole[: -PAGE - 512] + bytes(PAGE + 512)
    others = [pages_swapped, words_swapped, pieces_swapped, blank, whole[:-1], whole[:-PAGE], whole + b"\0"]
    assert len({digest_of(tmp_path, data) for data in (whole, *others)}) == 1 + len(others)

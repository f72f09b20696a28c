import random
from pathlib import Path

import pytest
import xxhash

from shared.digest import PIECE_BYTES, RunningDigest, file_digest

PAGE = 4096


def digest_of(folder: Path, data: bytes) -> str:
    file = folder / "data"
    file.write_bytes(data)
    return file_digest(file)


def expected(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def test_it_is_the_published_one(tmp_path: Path) -> None:
    """XXH3_128bits of no bytes and seed 0, from the reference implementation's own vectors."""
    assert digest_of(tmp_path, b"") == "99aa06d3014798d86001c324468d497f"


@pytest.mark.parametrize("size", [1, PAGE + 7, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 12345])
def test_a_file_has_the_digest_of_its_content(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert digest_of(tmp_path, data) == expected(data)


@pytest.mark.parametrize("longest", [1, 100, PAGE, 3 * PAGE + 5, 3 * PIECE_BYTES])
def test_data_that_is_seen_part_by_part_has_the_digest_of_the_whole(longest: int) -> None:
    rng = random.Random(longest)
    data = memoryview(rng.randbytes(min(200 * longest, 4 * PIECE_BYTES + 77)))
    digest, start = RunningDigest(), 0
    while start < len(data):
        end = start + rng.randint(0, longest)
        digest, start = digest.after(data[start:end]), end
    assert digest.hexdigest() == expected(bytes(data))


def test_a_part_that_is_taken_back_leaves_nothing() -> None:
    data = memoryview(random.Random(0).randbytes(2 * PAGE + 9))
    digest = RunningDigest().after(data[:100])
    digest.after(data[5:PAGE])  # of a sender that is not heard
    assert digest.after(data[100:]).hexdigest() == expected(bytes(data))


def test_what_is_cut_mixed_up_or_blank_changes_it(tmp_path: Path) -> None:
    whole = random.Random(0).randbytes(2 * PIECE_BYTES + 3 * PAGE)
    pages_swapped = whole[PAGE : 2 * PAGE] + whole[:PAGE] + whole[2 * PAGE :]
    blank = whole[: -PAGE - 512] + bytes(PAGE + 512)
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    others = [pages_swapped, blank, flipped, whole[:-1], whole[:-PAGE], whole + b"\0"]
    assert len({digest_of(tmp_path, data) for data in (whole, *others)}) == 1 + len(others)

"""A file that is not made of JSON lines is told as what it is; a bad line in one that is stays a bad line."""

import bz2
import codecs
import gzip
import lzma
from pathlib import Path

import pytest

from learner.data.check import main
from learner.data.records import Reading, RecordSource, read_all
from learner.detection.record import ReadCounts, read_records
from shared.errors import DataError

GOOD = b'{"images": ["a.png"], "width": 64, "height": 48, "objects": [{"desc": "cup", "bbox_2d": [4, 4, 40, 30]}]}'
PLAIN = Reading(check_images=False)

OTHER_FILES = {
    "UTF-16": codecs.BOM_UTF16_LE + (GOOD + b"\n").decode().encode("utf-16-le"),
    "gunzip": gzip.compress(GOOD),
    "bunzip2": bz2.compress(GOOD),
    "unxz": lzma.compress(GOOD),
    "a ZIP archive": b"PK\x03\x04" + GOOD,
    "one JSON array": b"[" + GOOD + b", " + GOOD + b"]",
    "JSON array": b'[\n  {\n    "images": []\n  }\n]\n',
    "one JSON array, not": b"\n [" + GOOD + b",\n" + GOOD + b"]\n",
    "over several lines": b'{\n  "images": ["a.png"],\n  "width": 64\n}\n',
    "end in CR alone": GOOD + b"\r" + GOOD + b"\r",
}


@pytest.mark.reported("labelme#1725 UTF-16, gzip, a pretty-printed array")
@pytest.mark.parametrize("said", OTHER_FILES)
@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
def test_a_file_of_another_kind_is_told_as_what_it_is(tmp_path: Path, said: str, on_bad_record) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(OTHER_FILES[said])
    with pytest.raises(DataError, match=said):
        list(read_records(path, check_images=False, on_bad_record=on_bad_record))
    with pytest.raises(DataError, match=said):
        RecordSource.opened(path, Reading(check_images=False, on_bad_record=on_bad_record), seed=None)


@pytest.mark.parametrize("first", [b"[1]", b"[]", b"{", b"null", b"[{}]", b'[{"a": 1}]', b"\x00\x00"])
def test_one_bad_line_at_the_start_of_good_ones_is_a_bad_record(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(first + b"\n" + GOOD + b"\n" + GOOD)
    counts = ReadCounts()
    records = list(read_records(path, check_images=False, on_bad_record="skip", counts=counts))
    assert [record.record_id for record in records] == ["train:2", "train:3"]
    assert [error.line for error in counts.skipped] == [1]


@pytest.mark.reported("labelme#1725 a byte order mark")
def test_a_byte_order_mark_costs_no_record(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + GOOD + b"\n" + GOOD + b"\r\n")
    source, _ = RecordSource.opened(path, PLAIN, seed=None)
    assert [source.record_at(place).record_id for place in range(2)] == ["train:1", "train:2"]
    assert source.record_at(0).objects == source.record_at(1).objects
    assert read_all(path, PLAIN) == tuple(source.record_at(place) for place in range(2))


@pytest.mark.reported("a data URI")
@pytest.mark.parametrize(
    "image",
    ["data:image/png;base64," + "A" * 600_000, "https://example.org/a.jpg", "file:///a.jpg", "s3://bucket/a.jpg"],
    ids=lambda image: image[:12],
)
def test_an_address_is_told_in_a_short_line(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD.replace(b"a.png", image.encode()) + b"\n")
    assert main([str(path)]) == 1
    told = capsys.readouterr().out
    assert "images takes the path of a local file" in told
    assert max(map(len, told.splitlines())) < 400


@pytest.mark.reported("an empty file")
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_record_is_an_error(tmp_path: Path, content: bytes, capsys) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    assert main([str(path)]) == 1
    assert "has no record to train on" in capsys.readouterr().out


@pytest.mark.reported("YOLOX#969 0..999 on 2000 px")
def test_whole_numbers_up_to_999_on_large_images_are_told(tmp_path: Path, capsys) -> None:
    path = tmp_path / "train.jsonl"
    large = GOOD.replace(b"64", b"2000").replace(b"48", b"1500").replace(b"[4, 4, 40, 30]", b"[100, 200, 500, 900]")
    path.write_bytes((large + b"\n") * 4)
    assert main([str(path), "--no-images"]) == 0
    assert "set custom.coordinate_space: norm1000" in capsys.readouterr().out
    assert main([str(path), "--no-images", "--coordinate-space", "norm1000"]) == 0
    assert "warning" not in capsys.readouterr().out
    path.write_bytes((large + b"\n") * 4 + large.replace(b"900", b"1200") + b"\n")
    assert main([str(path), "--no-images"]) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "long"])
def test_what_is_no_file_is_a_bad_record_and_waits_for_nobody(tmp_path: Path, kind: str, capsys) -> None:
    name = "n" * 300 if kind == "long" else "x"
    if kind == "folder":
        (tmp_path / name).mkdir()
    elif kind == "pipe":
        import os

        os.mkfifo(tmp_path / name)
    elif kind == "loop":
        (tmp_path / name).symlink_to(name)
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD.replace(b"a.png", name.encode()) + b"\n")
    for options in ((), ("--headers",)):
        assert main([str(path), *options]) == 1
        assert f"error: {path}:1: " in capsys.readouterr().out

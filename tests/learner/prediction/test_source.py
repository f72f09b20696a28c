"""The pictures that are predicted for."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from learner.detection.record import Record
from learner.evaluation.coco_results import own_image_id
from learner.prediction.source import Folder, Source, open_source
from shared.errors import DataError


def picture(path: Path, size: tuple[int, int] = (40, 30), format: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "white").save(path, format)
    return path


def read(source: Source) -> tuple[list[Record], list[str]]:
    failed: list[str] = []
    return list(source.records(failed.append)), failed


def opened(path: Path, written: str = "out") -> Source:
    return open_source(path, frozenset({"<|im_end|>"}), path.parent / written)


def test_a_folder_is_all_that_pillow_reads_in_a_fixed_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("b.png", "a.PNG", "sub/z.jpg", "sub/deeper/c.bmp", "another/no suffix", "another/odd.data"):
        picture(folder / name, format="BMP" if name.endswith("bmp") else "PNG")
    picture(folder / ".thumbnails" / "t.png")
    picture(folder / "._a.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    source = opened(folder)
    assert source.count() == 8
    assert isinstance(source, Folder)
    assert source.num_others == 3
    records, failed = read(source)
    assert [os.path.relpath(record.images[0], folder) for record in records] == [
        "a.PNG", "b.png", "another/no suffix", "another/odd.data", "sub/z.jpg", "sub/deeper/c.bmp",
    ]  # fmt: skip
    assert [own_image_id(record) for record in records] == [1, 2, 5, 6, 7, 8]
    assert {(record.width, record.height, record.objects) for record in records} == {(40, 30, ())}
    assert [line.partition(": ")[0] for line in failed] == [
        f"{folder}/cut.jpg cannot be read", f"{folder}/gone.png cannot be read",
    ]  # fmt: skip
    assert source.num_others == 3


def test_what_is_written_meanwhile_is_not_predicted_for(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    source = open_source(tmp_path / "in", frozenset(), tmp_path / "in" / "out")
    picture(tmp_path / "in" / "out" / "pictures" / "a.png")
    assert source.count() == 1
    assert len(read(source)[0]) == 1


def test_a_single_file_is_a_picture_whatever_its_name(tmp_path: Path) -> None:
    records, failed = read(opened(picture(tmp_path / "scan", (7, 9))))
    assert [(record.width, record.height) for record in records] == [(7, 9)]
    assert failed == []
    (tmp_path / "text").write_text("none")
    records, failed = read(opened(tmp_path / "text"))
    assert records == []
    assert failed == [f"{tmp_path}/text cannot be read: it is in no image format that is read here"]


def test_lines_need_no_objects_and_a_bad_one_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "val.jsonl"
    lines = [
        {"images": ["a.png"], "width": 40, "height": 30},
        {"images": ["b.png"], "width": 40, "height": 30, "objects": "none"},
        {"images": ["c.png"], "width": 0, "height": 30, "objects": []},
        {"images": ["d.png"], "width": 40, "height": 30, "objects": [], "metadata": {"image_id": 7}},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n{")
    source = opened(file)
    assert source.count() == 5
    assert source.root == tmp_path
    records, failed = read(source)
    assert [(record.record_id, own_image_id(record), record.images) for record in records] == [
        ("val:1", 1, (str(tmp_path / "a.png"),)),
        ("val:2", 2, (str(tmp_path / "b.png"),)),
        ("val:4", 4, (str(tmp_path / "d.png"),)),
    ]
    assert [line.partition(": ")[0] for line in failed] == [f"{file}:3", f"{file}:6"]


def test_lines_that_all_have_ids_of_their_own_keep_them(tmp_path: Path) -> None:
    file = tmp_path / "val.jsonl"
    line = {"images": ["a.png"], "width": 40, "height": 30}
    for ids, expected in (((9, 4), [9, 4]), ((9, 9), [1, 2])):
        file.write_text("\n".join(json.dumps({**line, "metadata": {"image_id": id}}) for id in ids))
        assert [own_image_id(record) for record in read(opened(file))[0]] == expected


def test_a_path_that_is_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none is neither a picture, a folder nor a JSONL file; correct the path"):
        opened(tmp_path / "none")

"""`boxloop data from-coco` writes JSONL that the data contract accepts."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from learner.data.from_coco import desc_of, main
from learner.detection.geometry import bounding_box
from learner.detection.record import read_records

ANNOTATIONS: dict[str, Any] = {
    "categories": [{"id": 3, "name": "baby_buggy"}, {"id": 9, "name": "cat"}],
    "images": [
        {"id": 1, "width": 100, "height": 50, "file_name": "a.png"},
        {"id": 2, "width": 100, "height": 50, "coco_url": "http://images.example/val/b.png"},
        {"id": 3, "width": 100, "height": 50, "file_name": "val/b.png"},
    ],
    "annotations": [
        {"image_id": 2, "category_id": 9, "bbox": [0, 0, 10, 20], "segmentation": [[0, 0, 10, 0, 10, 20]]},
        {"image_id": 1, "category_id": 3, "bbox": [90, 40, 13, 10], "segmentation": [[90, 40, 103, 40, 95, 50]]},
        {"image_id": 1, "category_id": 9, "bbox": [5, 5, 50, 40], "iscrowd": 1, "segmentation": {"counts": [1]}},
        {"image_id": 1, "category_id": 9, "bbox": [5, 5, 0, 40], "segmentation": []},
        {"image_id": 1, "category_id": 9, "bbox": [120, 5, 5, 40], "segmentation": []},
        {"image_id": 1, "category_id": 9, "bbox": [1, 2, 30, 40], "segmentation": [[1, 2, 3, 4, 5, 6], [7, 8, 9, 9]]},
    ],
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "val").mkdir(parents=True)
    for name in ("a.png", "val/b.png"):
        Image.new("RGB", (100, 50)).save(images / name)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(ANNOTATIONS))
    return path


def convert(source: Path, *options: str) -> Path:
    out = source.parent / "jsonl" / "val.jsonl"
    assert main([str(source), "--images", str(source.parent / "images"), "--out", str(out), *options]) == 0
    return out


def test_boxes_are_written_by_image_without_crowds_and_empty_ones(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = list(read_records(convert(source)))
    assert [[(item.desc, item.bins) for item in record.objects] for record in records] == [
        [("baby buggy", (899, 799, 999, 999)), ("cat", (10, 40, 310, 839))],
        [("cat", (0, 0, 100, 400))],
        [],
    ]
    assert [record.metadata for record in records] == [{"image_id": 1}, {"image_id": 2}, {"image_id": 3}]
    shown = capsys.readouterr().out
    assert "3 records, 3 objects; left out 1 crowds, 0 without a box and 2 without extent; clipped 1;" in shown


def test_images_are_named_relative_to_the_file(source: Path) -> None:
    lines = [json.loads(line) for line in convert(source).read_text().splitlines()]
    assert [line["images"] for line in lines] == [["../images/a.png"], ["../images/val/b.png"], ["../images/val/b.png"]]


def test_single_polygons_are_kept_and_others_become_boxes(source: Path) -> None:
    first, second, _ = read_records(convert(source, "--geometry", "poly"))
    assert [(item.kind, len(item.bins)) for item in first.objects] == [("poly", 6), ("bbox_2d", 4)]
    assert bounding_box(second.objects[0].bins) == (0, 0, 100, 400)


def write(source: Path, *annotations: dict[str, Any]) -> None:
    """Put annotations of image 1, numbered from 71, in the place of the others."""
    numbered = [{"id": 71 + place, "image_id": 1, **each} for place, each in enumerate(annotations)]
    source.write_text(json.dumps({**ANNOTATIONS, "annotations": numbered}))


def test_annotations_without_a_box_are_left_out_and_counted(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = ({"bbox": []}, {"bbox": None}, {}, {"bbox": [], "segmentation": []})
    write(source, *({"category_id": 9, **each} for each in empty), {"category_id": 9, "bbox": [1, 2, 30, 40]})
    first, *_ = read_records(convert(source))
    assert [item.bins for item in first.objects] == [(10, 40, 310, 839)]
    assert "left out 0 crowds, 4 without a box and 0 without extent" in capsys.readouterr().out


@pytest.mark.parametrize(
    "segmentation",
    [[[1, 2, 3, 4, 5, 6, 7]], [[1, 2, 3, 4]], [[]], [None], [], None, {"counts": "abc", "size": [50, 100]}],
)
def test_what_is_no_whole_polygon_becomes_a_box(
    source: Path, segmentation: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(source, {"category_id": 9, "bbox": [1, 2, 30, 40], "segmentation": segmentation})
    first, *_ = read_records(convert(source, "--geometry", "poly"))
    assert [(item.kind, item.bins) for item in first.objects] == [("bbox_2d", (10, 40, 310, 839))]
    assert "1 boxes for want of a single whole polygon" in capsys.readouterr().out


@pytest.mark.parametrize(
    "broken",
    [
        {"category_id": 9, "bbox": [1, 2, 3]},
        {"category_id": 9, "bbox": [1, 2, None, 4]},
        {"category_id": 9, "bbox": 7},
        {"category_id": 4, "bbox": [1, 2, 3, 4]},
        {"bbox": [1, 2, 3, 4]},
        {"category_id": 9, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5, "6"]]},
    ],
)
def test_a_broken_annotation_is_named(source: Path, broken: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(source, {"category_id": 9, "bbox": [1, 2, 30, 40]}, broken)
    out = source.parent / "x.jsonl"
    arguments = [str(source), "--images", str(source.parent), "--out", str(out), "--geometry", "poly"]
    assert main(arguments) == 2
    assert f"{source}: annotation 72 of image 1: " in capsys.readouterr().err
    assert not list(source.parent.glob("x.jsonl*"))


def test_a_file_that_is_no_annotation_file_leaves_nothing_behind(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text('{"images": []}')
    out = source.parent / "x.jsonl"
    assert main([str(source), "--images", str(source.parent), "--out", str(out)]) == 2
    assert "'categories'" in capsys.readouterr().err
    assert not list(source.parent.glob("x.jsonl*"))
    assert main([str(source.parent / "none.json"), "--images", str(source.parent), "--out", str(out)]) == 2


def test_names_become_words() -> None:
    assert desc_of("bow_(weapon)") == "bow (weapon)"

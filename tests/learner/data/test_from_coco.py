"""`boxloop data from-coco` writes JSONL that the data contract accepts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from learner.data.annotations import Conversion, desc_of
from learner.data.coco import annotated_images, id_of
from learner.data.coco_shapes import box_around
from learner.data.conversion import records_of
from learner.data.from_coco import main
from learner.detection.geometry import bounding_box
from learner.detection.record import read_records
from learner.detection.record_rules import Changes, Rules
from shared.errors import DataError

ANNOTATIONS: dict[str, Any] = {
    "categories": [{"id": 3, "name": "baby_buggy"}, {"id": 9, "name": "cat"}],
    "images": [
        {"id": 1, "width": 100, "height": 50, "file_name": "a.png"},
        {"id": 2, "width": 100, "height": 50, "coco_url": "http://images.example/val/b.png"},
        {"id": 3, "width": 100, "height": 50, "file_name": "val/c.png"},
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
    for name in ("a.png", "val/b.png", "val/c.png"):
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
    assert "3 records, 3 objects of 6 annotations, 3 left out" in shown
    assert "left out    1 crowds" in shown
    assert "left out    2 without extent inside the image" in shown
    assert "changed     1 boxes clipped to their images" in shown


def test_images_are_named_relative_to_the_file(source: Path) -> None:
    lines = [json.loads(line) for line in convert(source).read_text().splitlines()]
    assert [line["images"] for line in lines] == [["../images/a.png"], ["../images/val/b.png"], ["../images/val/c.png"]]


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
    assert "left out    4 without a box or a segmentation, the first: annotation 71" in capsys.readouterr().out


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
    ("broken", "reason"),
    [
        ({"category_id": 9, "bbox": [1, 2, 3]}, "with a broken box"),
        ({"category_id": 9, "bbox": [1, 2, None, 4]}, "with a broken box"),
        ({"category_id": 9, "bbox": [1, 2, float("nan"), 4]}, "with a broken box"),
        ({"category_id": 9, "bbox": 7}, "with a broken box"),
        ({"category_id": 9, "bbox": [10**400, 2, 3, 4]}, "with a broken box"),
        ({"category_id": 4, "bbox": [1, 2, 3, 4]}, "of categories that are not listed"),
        ({"bbox": [1, 2, 3, 4]}, "of categories that are not listed"),
        ({"category_id": 9, "bbox": [1, 2, 3, 4], "image_id": 7}, "of images that are not listed"),
        ({"category_id": 9, "bbox": [1, 2, 3, 4], "image_id": None}, "of images that are not listed"),
    ],
)
def test_a_broken_annotation_is_counted_and_named(
    source: Path, broken: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(source, {"category_id": 9, "bbox": [1, 2, 30, 40]}, broken)
    first, *_ = read_records(convert(source))
    assert len(first.objects) == 1
    assert f"1 {reason}, the first: annotation 72" in capsys.readouterr().out


@pytest.mark.parametrize(
    "annotation",
    [
        {"category_id": 9, "bbox": [1, 2, 30, 40]},
        {"category_id": "9", "bbox": [1, 2, 30, 40]},
        {"category_id": 9.0, "bbox": ["1", "2", "30", "40"]},
        {"category_id": 9, "bbox": [31, 42, -30, -40]},
        {"category_id": 9, "segmentation": [[1, 2, 31, 2, 31, 42]]},
        {"category_id": 9, "segmentation": [1, 2, 31, 2, 31, 42]},
        {"category_id": 9, "bbox": [0, 0, 0, 0], "segmentation": [[1, 2, 10, 9, 1, 9], [31, 42, 5, 5, 6, 6]]},
        {"category_id": 9, "bbox": [1, 2, 3, 4, 5], "segmentation": [[1, 2, 31, 2, 31, 42]]},
        {"category_id": 9, "segmentation": {"size": [50, 100], "counts": [52, 40, *[10, 40] * 29, 3448]}},
    ],
)
def test_a_box_is_the_same_however_it_is_written(source: Path, annotation: Any) -> None:
    write(source, annotation)
    first, *_ = read_records(convert(source))
    assert [item.bins for item in first.objects] == [(10, 40, 310, 839)]


@pytest.mark.parametrize("seed", range(20))
def test_compressed_masks_have_the_boxes_that_cocoapi_finds(seed: int) -> None:
    from pycocotools import mask as cocoapi

    random = np.random.default_rng(seed)
    mask = np.zeros((37, 53), np.uint8, order="F")
    for _ in range(3):
        x, y = random.integers(0, 45), random.integers(0, 30)
        mask[y : y + random.integers(1, 7), x : x + random.integers(1, 8)] = 1
    encoded = cocoapi.encode(mask)
    x, y, width, height = cocoapi.toBbox(encoded)
    text = {"size": [37, 53], "counts": encoded["counts"].decode()}
    assert box_around(text) == (x, y, x + width, y + height)


KEYS = st.one_of(st.integers(0, 3), st.integers(0, 3).map(str), st.integers(2**60, 2**60 + 2), st.just(9.0))
NUMBERS = st.one_of(st.integers(-20, 120), st.floats(), st.none(), st.text(max_size=2))
BOXES = st.one_of(st.none(), st.lists(NUMBERS, max_size=5), st.lists(st.integers(-20, 120), min_size=4, max_size=4))
SHAPES = st.one_of(
    st.none(),
    st.lists(st.lists(NUMBERS, max_size=8), max_size=2),
    st.lists(NUMBERS, max_size=8),
    st.fixed_dictionaries({"size": st.just([50, 100]), "counts": st.one_of(st.text(), st.lists(NUMBERS))}),
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"image_id": KEYS, "category_id": KEYS, "bbox": BOXES, "segmentation": SHAPES},
            optional={"iscrowd": st.sampled_from([0, 1, "1", None, True])},
        ),
        max_size=6,
    ),
    st.sampled_from(["bbox_2d", "poly"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_annotations_in_are_objects_out_and_counted_reasons(
    source: Path, annotations: list[dict[str, Any]], geometry: Any
) -> None:
    content = {
        "images": [{"id": key, "width": 100, "height": 50, "file_name": "a.png"} for key in (1, "2", 2**60)],
        "categories": [{"id": 1, "name": "cat"}, {"id": "2", "name": "_"}, {"id": 2**60 + 1, "name": "dog"}],
        "annotations": annotations,
    }
    conversion, records = Conversion(), []
    try:
        images = annotated_images(content, source.parent / "images", conversion)
        records += records_of(images, source.parent, geometry, conversion)
    except DataError:
        assert not conversion.objects
    assert conversion.objects + conversion.left_out.total() == conversion.annotations == len(annotations)
    if records:
        assert sum(len(record["objects"]) for record in records) == conversion.objects
    for record in records:
        Rules(check_images=False).check(orjson.dumps(record), source.parent, Changes())


@pytest.mark.parametrize("part", ["images", "categories"])
@pytest.mark.parametrize("pair", [(1, 1), (1, "1"), (2**70, str(2**70)), (3.0, 3)])
def test_an_id_that_stands_twice_names_both_entries(
    source: Path, part: str, pair: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [
        {"id": id, "width": 9, "height": 9, "file_name": f"{place}.png", "name": f"{place}.png"}
        for place, id in enumerate(pair)
    ]
    source.write_text(json.dumps({**ANNOTATIONS, part: entries}))
    assert main([str(source), "--images", str(source.parent), "--out", str(source.parent / "x.jsonl")]) == 2
    told = capsys.readouterr().err
    assert "'0.png'" in told
    assert "'1.png'" in told


def test_ids_are_compared_alike_and_exactly() -> None:
    assert id_of(7) == id_of("7") == id_of(7.0) == id_of(" 7 ")
    assert id_of(2**53) != id_of(2**53 + 1)
    assert id_of(None) is id_of(True) is id_of([1]) is id_of("") is id_of(1.5) is None


@pytest.mark.parametrize(
    "written",
    ["val\\b.png", "C:\\data\\images\\val\\b.png", "/home/me/val/b.png", "images/val/b.png", "val/%62.png",
     "https://example.org/set/val/b.png", "./val/b.png"],
)  # fmt: skip
def test_a_file_is_found_however_its_name_is_written(source: Path, written: str) -> None:
    image = {"id": 1, "width": 100, "height": 50, "file_name": written}
    source.write_text(json.dumps({**ANNOTATIONS, "images": [image], "annotations": []}))
    (line,) = convert(source).read_text().splitlines()
    assert json.loads(line)["images"] == ["../images/val/b.png"]


def test_one_file_is_not_taken_for_two_images(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"id": n, "width": 100, "height": 50, "file_name": f"{n}/b.png"} for n in (1, 2)]
    (source.parent / "images" / "b.png").write_bytes((source.parent / "images" / "a.png").read_bytes())
    source.write_text(json.dumps({**ANNOTATIONS, "images": images, "annotations": []}))
    out = source.parent / "x.jsonl"
    assert main([str(source), "--images", str(source.parent / "images"), "--out", str(out)]) == 1
    assert "line 2: missing image file" in capsys.readouterr().out


def test_what_is_written_and_will_be_refused_is_told(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = [{**image, "width": 50, "height": 100} for image in ANNOTATIONS["images"]]
    source.write_text(json.dumps({**ANNOTATIONS, "images": swapped}))
    out = source.parent / "x.jsonl"
    assert main([str(source), "--images", str(source.parent / "images"), "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "a.png is 100x50 px, but the record says 50x100" in shown
    assert "3 records will be refused" in shown
    assert out.exists()


def test_an_image_whose_size_nothing_says_is_left_out_with_its_annotations(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [ANNOTATIONS["images"][0], {"id": 2, "file_name": "gone.png"}]
    source.write_text(json.dumps({**ANNOTATIONS, "images": images}))
    out = source.parent / "x.jsonl"
    assert main([str(source), "--images", str(source.parent / "images"), "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "1 records, 2 objects of 6 annotations, 4 left out" in shown
    assert "left out    1 of images without a size, the first: annotation None of image 2" in shown
    assert "error: 2: nothing says its size, and its file cannot: [Errno 2]" in shown


def test_links_stay_links_and_devices_devices(source: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("old")
    link.symlink_to(target)
    images = str(source.parent / "images")
    assert main([str(source), "--images", images, "--out", str(link)]) == 0
    assert link.is_symlink()
    assert target.read_text().count("\n") == 3
    assert main([str(source), "--images", images, "--out", "/dev/null"]) == 0
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[10, 10, 99, 49]] * 4, "x1, y1, x2, y2"),
        ([[0.1, 0.1, 0.5, 0.5]] * 4, "run from 0 to 1"),
    ],
)
def test_boxes_that_look_like_other_numbers_are_told(
    source: Path, boxes: list[list[float]], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(source, *({"category_id": 9, "bbox": box} for box in boxes))
    convert(source)
    assert "warning: 4 of 4 boxes" in (shown := capsys.readouterr().out)
    assert said in shown


def test_a_file_that_is_no_annotation_file_leaves_nothing_behind(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text('{"images": []}')
    out = source.parent / "x.jsonl"
    assert main([str(source), "--images", str(source.parent), "--out", str(out)]) == 2
    assert "`annotations` is missing" in capsys.readouterr().err
    assert not list(source.parent.glob("x.jsonl*"))
    assert main([str(source.parent / "none.json"), "--images", str(source.parent), "--out", str(out)]) == 2


def test_names_become_words() -> None:
    assert desc_of("bow_(weapon)") == "bow (weapon)"

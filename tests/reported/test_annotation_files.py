"""COCO files as people reported them to other projects: `from-coco` runs on each, and what it writes is checked.

What was reported and takes a picture, a run or a server of its own stands with its subject: `pytest -m reported`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from learner.data.check import main as check
from learner.data.from_coco import main as convert
from shared.errors import BoxloopError

pytestmark = pytest.mark.reported

IMAGE = {"id": 1, "file_name": "a.png", "width": 64, "height": 48}
CUP = {"id": 1, "name": "cup"}
BOX = [4, 4, 36, 26]
WRITTEN = [4, 4, 40, 30]
OUTLINE = [[4, 4, 40, 4, 40, 30, 4, 30]]


def coco(
    *annotations: dict[str, Any],
    images: list[dict[str, Any]] | None = None,
    categories: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    placed = [{"id": number, "image_id": 1, "category_id": 1, **each} for number, each in enumerate(annotations, 1)]
    return {"images": images or [IMAGE], "categories": categories or [CUP], "annotations": placed}


def box(bbox: Any = BOX, **fields: Any) -> dict[str, Any]:
    return {"bbox": bbox, **fields}


def image(**fields: Any) -> list[dict[str, Any]]:
    return [{**IMAGE, **fields}]


class Report(NamedTuple):
    """`content` ends with `code`, says each of `says`, and where it can be trained gives `boxes`."""

    content: dict[str, Any]
    code: int
    says: tuple[str, ...] = ()
    boxes: tuple[list[int], ...] = (WRITTEN,)


def refused(content: dict[str, Any], *says: str) -> Report:
    return Report(content, 2, says, ())


def written_but_untrainable(content: dict[str, Any], *says: str) -> Report:
    return Report(content, 1, (*says, "1 records will be refused"), (WRITTEN,))


REPORTS = {
    "cvat#298 image ids are texts": Report(coco(box(), images=image(id="1")), 0),
    "cvat#298 annotations name images by texts": Report(coco(box(image_id="1")), 0),
    "yolact#156 category ids are texts": Report(coco(box(category_id="1")), 0),
    "cocoapi#76 label-studio#7110 annotations of images that are not listed": Report(
        coco(box(), box(image_id=77), box(image_id=78)), 0, ("2 of images that are not listed", "image 77")
    ),
    "cocoapi#76 all of them": refused(coco(box(image_id=77)), "none of 1 annotations is an object", "image 77"),
    "supervision#285 an image id twice": refused(
        coco(box(), images=[IMAGE, {**IMAGE, "file_name": "b.png"}]), "'a.png'", "'b.png'"
    ),
    "coco-annotator#526 NaN in a field that nobody uses": Report(coco(box(area=float("nan"))), 0),
    "coco-annotator#526 NaN in a box": Report(
        coco(box(), box([float("nan"), 4, 36, 26])), 0, ("1 with a broken box", "annotation 2")
    ),
    "cocoapi#420 sizes are null": Report(coco(box(), images=image(width=None, height=None)), 0, ("sizes taken",)),
    "cocoapi#420 sizes are texts": Report(coco(box(), images=image(width="64", height="48")), 0),
    "fiftyone#1130 sizes are 64.0 and 48.0": Report(coco(box(), images=image(width=64.0, height=48.0)), 0),
    "fiftyone#1130 sizes are zero": Report(coco(box(), images=image(width=0, height=0)), 0, ("sizes taken",)),
    "cocoapi#420 sizes are swapped": written_but_untrainable(
        coco(box([4, 4, 26, 36]), images=image(width=48, height=64)), "64x48", "48x64"
    )._replace(boxes=([4, 4, 30, 40],)),
    "X-AnyLabeling#700 backslashes": Report(coco(box(), images=image(file_name="sub\\c.png")), 0),
    "X-AnyLabeling#700 a drive letter": Report(coco(box(), images=image(file_name="D:\\data\\sub\\c.png")), 0),
    "a blank category": refused(coco(box(), categories=[{"id": 1, "name": ""}]), "without a name", "category 1"),
    "a category _": refused(coco(box(), categories=[{"id": 1, "name": "_"}]), "without a name", "category 1"),
    "percent escapes": Report(coco(box(), images=image(file_name="d%20e.png")), 0),
    "percent escapes of a file that is not there": written_but_untrainable(
        coco(box(), images=image(file_name="x%20y.png")), "missing image file", "x%20y.png"
    ),
    "a NFD name": Report(coco(box(), images=image(file_name="e\u0301.png")), 0),
    "a URL of a file that is not there": written_but_untrainable(
        coco(box(), images=image(file_name="https://example.org/x/y.png")), "missing image file"
    ),
    "label studio: images/images/": Report(coco(box(), images=image(file_name="images/a.png")), 0),
    "EISeg#85 polygons alone": Report(coco({"segmentation": OUTLINE}), 0, ("1 boxes taken from segmentations",)),
    "coco-annotator#109 a zero box with a polygon": Report(
        coco(box([0, 0, 0, 0], segmentation=OUTLINE)), 0, ("1 boxes taken from segmentations",)
    ),
    "a reversed drag": Report(coco(box([40, 30, -36, -26])), 0),
    "YOLOX#969 x1 y1 x2 y2": Report(
        coco(box([10, 10, 40, 40]), box([5, 5, 60, 44]), box([20, 8, 50, 40]), box([2, 2, 62, 46])),
        0,
        ("3 boxes clipped", "x1, y1, x2, y2"),
        ([2, 2, 64, 48], [5, 5, 64, 48], [10, 10, 50, 48], [20, 8, 64, 48]),
    ),
    "YOLOX#969 numbers from 0 to 1": Report(
        coco(box([0.1, 0.1, 0.5, 0.5])), 0, ("lie within one pixel",), ([0.1, 0.1, 0.6, 0.6],)
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png", "d e.png", "é.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("report", REPORTS)
def test_what_comes_in_comes_out_or_is_told(folder: Path, report: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, code, says, boxes = REPORTS[report]
    (folder / "coco.json").write_text(json.dumps(content))
    try:
        ended = convert(["coco.json", "--images", "images", "--out", "out.jsonl"])
        said = "".join(capsys.readouterr())
    except BoxloopError as error:
        ended, said = error.exit_code, str(error)
    assert ended == code, said
    assert [words for words in says if words not in said] == []
    out = folder / "out.jsonl"
    assert out.exists() == bool(boxes)
    if boxes:
        objects = [each for line in out.read_text().splitlines() for each in json.loads(line)["objects"]]
        assert tuple(sorted(each["bbox_2d"] for each in objects)) == boxes
        assert check(["out.jsonl"]) == code  # what is written passes the check, or it was told that it will not


def test_a_folder_of_images_that_is_not_there_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "coco.json").write_text(json.dumps(coco(box())))
    assert convert(["coco.json", "--images", "nowhere", "--out", "out.jsonl"]) == 2
    assert "--images nowhere is no folder" in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()

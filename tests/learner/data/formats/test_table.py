"""Which format a folder is in, COCO where it lies, and the classes of a data set."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from learner.data.formats.table import FORMATS
from learner.data.from_dataset import main

Write = Callable[..., Any]
Convert = Callable[..., Any]

BOX = [10, 5, 30, 25]


def coco(name: str = "a.png") -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": name, "width": 100, "height": 50}],
        "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "black_cat"}, {"id": 3, "name": "_"}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 20]}],
    }


@pytest.mark.parametrize(
    ("annotations", "image", "split"),
    [
        ("coco.json", "a.png", None),
        ("coco.json", "images/a.png", None),
        ("annotations/instances_train2017.json", "train2017/a.png", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017/a.png", "train2017"),
        ("train/_annotations.coco.json", "train/a.png", "train"),
    ],
)
def test_coco_is_found_with_its_images(
    write: Write, convert: Convert, annotations: str, image: str, split: str | None
) -> None:
    write(image)
    write(annotations, coco())
    done = convert()
    assert (done.code, done.objects) == (0, [[("black cat", BOX)]])
    assert done.records[0]["images"] == [f"../set/{image}"]
    assert convert(place=annotations).records == done.records
    if split is not None:
        assert convert("--split", split).records == done.records
        other = annotations.replace("train2017", "val2017").replace("train/", "valid/")
        write(other, coco())
        assert "name one of them" in convert().said


def test_images_may_lie_elsewhere(write: Write, convert: Convert, tmp_path: Path) -> None:
    write("far/away/a.png")
    write("coco.json", coco())
    assert "missing image file" in convert().said
    assert convert("--images", str(tmp_path / "set" / "far" / "away")).code == 0
    assert "--images nowhere is no folder" in convert("--images", "nowhere").said


def test_a_folder_in_two_formats_names_both(write: Write, convert: Convert) -> None:
    write("images/train/a.png")
    write("labels/train/a.txt", "0 0.2 0.3 0.2 0.2")
    write("data.yaml", "train: images/train\nnames: [cat]")
    write("annotations/instances_train.json", coco("images/train/a.png"))
    done = convert()
    assert (done.code, done.records) == (2, [])
    assert f"this may be coco ({FORMATS['coco'].layout}) and yolo ({FORMATS['yolo'].layout}); say which" in done.said
    assert convert("--format", "yolo").objects == [[("cat", [10, 10, 30, 20])]]
    assert convert("--format", "coco").objects == [[("black cat", BOX)]]


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", "<html/>", b"\x00\xff"])
def test_what_is_in_no_format_says_what_is_looked_for(write: Write, convert: Convert, content: Any) -> None:
    write("file.json" if content is not None else "a.png", content)
    for place in ("", "file.json"):
        done = convert(place=place)
        assert (done.code, done.records) == (2, [])
        if content is not None or not place:
            assert "no annotations in a format that is known here" in done.said
            assert all(each.layout in done.said for each in FORMATS.values())
    done = convert("--format", "voc")
    assert (done.code, FORMATS["voc"].layout in done.said, FORMATS["coco"].layout in done.said) == (2, True, False)


def test_a_place_that_is_not_there_is_told(convert: Convert) -> None:
    done = convert(place="none")
    assert (done.code, "none: there is no such file or folder" in done.said) == (2, True)


def test_a_result_file_or_a_broken_one_is_told_as_by_from_coco(write: Write, convert: Convert) -> None:
    write("coco.json", json.dumps(coco()).replace("]", "", 1))
    assert "coco.json: this is no JSON" in convert(place="coco.json").said
    write("coco.json", {"images": [], "annotations": []})
    assert "`categories` is missing" in convert(place="coco.json").said


def test_classes_are_those_of_the_list_or_of_the_objects(write: Write, convert: Convert) -> None:
    write("a.png")
    coco_file = write("coco.json", coco())
    assert "classes" not in convert().records[0]
    assert convert("--classes").records[0]["classes"] == ["dog", "black cat"]
    coco_file.unlink()
    write("a.json", {"shapes": [
        {"label": label, "points": [[1, 2], [30, 40]], "shape_type": kind}
        for label, kind in (("dog", "rectangle"), ("cat", "rectangle"), ("line", "line"), ("dog", "rectangle"))
    ], "imagePath": "a.png"})  # fmt: skip
    assert convert("--classes").records[0]["classes"] == ["cat", "dog"]
    write("a.json", {"shapes": [], "imagePath": "a.png"})
    assert "--classes: there is no class with a name" in convert("--classes").said


def test_the_help_has_an_example_of_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"boxloop data from {each.example}" in shown for each in FORMATS.values())

"""labelme: which shapes are objects, and where their images are."""

from collections.abc import Callable
from typing import Any

import pytest

Write = Callable[..., Any]
Convert = Callable[..., Any]


def shape(kind: Any, *points: Any, label: Any = "black_cat") -> dict[str, Any]:
    return {"label": label, "points": [*points], "shape_type": kind}


def content(*shapes: Any, **fields: Any) -> dict[str, Any]:
    return {"shapes": [*shapes], "imagePath": "a.png", "imageWidth": 100, "imageHeight": 50, **fields}


RECTANGLE = shape("rectangle", [30, 25], [10, 5])
BOX = [10, 5, 30, 25]


@pytest.mark.parametrize(
    "written",
    [
        RECTANGLE,
        shape("rectangle", [10, 5], [30, 5], [30, 25], [10, 25]),
        shape("polygon", [10, 5], [30, 7], [20, 25]),
        shape(None, [10, 5], [30, 7], [20, 25]),
        shape("circle", [20, 15], [28, 21]),
    ],
    ids=["two corners", "four corners", "a polygon", "no kind", "a circle"],
)
def test_shapes_with_an_area_are_objects(write: Write, convert: Convert, written: Any) -> None:
    write("a.png")
    write("a.json", content(written))
    done = convert()
    expected = BOX if written["shape_type"] != "circle" else [10, 5, 30, 25]
    assert (done.code, done.objects) == (0, [[("black cat", expected)]])
    assert done.records[0]["images"] == ["../set/a.png"]


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (shape("line", [1, 2], [3, 4]), "of shapes that have no box, the first: a.json shape 2: line"),
        (shape("mask", [1, 2], [3, 4]), "of shapes that have no box"),
        (shape("rectangle", [1, 2]), "with a broken box, the first: a.json shape 2: points [[1, 2]]"),
        (shape("rectangle", [1, 2], [3, None]), "with a broken box"),
        (shape("circle", [1, 2], [3, float("nan")]), "with a broken box"),
        (shape("polygon", [1, 2], [3, 4, 5], [6, 7]), "with a broken box"),
        (shape("polygon", [1, 2], [3, 4]), "with a broken box"),
        (shape("rectangle"), "without a box or a segmentation"),
        ({"label": "cat"}, "without a box or a segmentation"),
        (shape("rectangle", [1, 2], [3, 4], label=None), "of categories without a name"),
        (shape(["rectangle"], [1, 2], [3, 4]), "of shapes that have no box"),
        (7, "with a broken box, the first: a.json shape 2: 7"),
    ],
)
def test_a_shape_that_is_no_object_is_counted_and_named(
    write: Write, convert: Convert, written: Any, reason: str
) -> None:
    write("a.png")
    write("a.json", content(RECTANGLE, written))
    done = convert()
    assert (done.code, done.objects) == (0, [[("black cat", BOX)]])
    assert f"left out    1 {reason}" in done.said


@pytest.mark.parametrize("path", ["a.png", "..\\images\\a.png", "/home/me/a.png", "a.json", "b.png", None])
def test_an_image_is_found_by_the_name_of_its_annotations(write: Write, convert: Convert, path: Any) -> None:
    write("a.png")
    write("a.json", content(RECTANGLE, imagePath=path))
    done = convert()
    assert (done.code, done.records[0]["images"]) == (0, ["../set/a.png"])


def test_files_that_are_none_of_labelme_s_are_told(write: Write, convert: Convert) -> None:
    write("a.png")
    write("a.json", content(RECTANGLE))
    for name, written in (("b", ""), ("c", "[]"), ("d", '{"shapes": 7}'), ("e", b"\xff\xfe\x00")):
        write(f"{name}.json", written)
    done = convert()
    assert (done.code, len(done.records)) == (1, 1)
    for said in (
        "b.json: this is no JSON",
        "c.json: this is no file of labelme",
        "d.json: this is",
        "e.json: this is no",
    ):
        assert f"error: {said}" in done.said


def test_a_single_file_is_a_data_set_too(write: Write, convert: Convert) -> None:
    write("a.png")
    write("a.json", content(RECTANGLE))
    write("b.json", content())
    assert len(convert(place="a.json").records) == 1

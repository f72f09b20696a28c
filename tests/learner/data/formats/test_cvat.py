"""CVAT for images 1.1: shapes, subsets, labels, and what is of a video."""

from collections.abc import Callable
from typing import Any

import pytest

Write = Callable[..., Any]
Convert = Callable[..., Any]

BOX = '<box label="black_cat" xtl="10" ytl="5" xbr="30" ybr="25"/>'
META = "<meta><task><labels><label><name>dog</name></label><label><name>black_cat</name></label></labels></task></meta>"


def image(*shapes: str, name: str = "a.png", **attributes: str) -> str:
    said = {"id": "0", "name": name, "width": "100", "height": "50", **attributes}
    written = " ".join(f'{key}="{value}"' for key, value in said.items())
    return f"<image {written}>{''.join(shapes)}</image>"


def annotations(*parts: str) -> str:
    return f"<?xml version='1.0' encoding='utf-8'?><annotations><version>1.1</version>{''.join(parts)}</annotations>"


@pytest.mark.parametrize(
    "written",
    [
        BOX,
        '<box label="black_cat" xtl="10" ytl="5" xbr="30" ybr="25" rotation="180"/>',
        '<box label="black_cat" xtl="10" ytl="5" xbr="30" ybr="25" rotation="90"/>',
        '<polygon label="black_cat" points="10,5;30.0,9;12,25"/>',
        '<ellipse label="black_cat" cx="20" cy="15" rx="10" ry="10"/>',
        '<ellipse label="black_cat" cx="20" cy="15" rx="10" ry="10" rotation="30"/>',
        '<mask label="black_cat" rle="1, 2" left="10" top="5" width="20" height="20"/>',
    ],
)
def test_shapes_with_an_area_are_objects(write: Write, convert: Convert, written: str) -> None:
    write("images/a.png")
    write("annotations.xml", annotations(META, image(written)))
    done = convert()
    assert (done.code, done.objects) == (0, [[("black cat", [10, 5, 30, 25])]])
    assert done.records[0]["images"] == ["../set/images/a.png"]


def test_a_box_on_its_side_changes_its_sides(write: Write, convert: Convert) -> None:
    write("images/a.png")
    turned = BOX.replace("30", "20").replace("/>", ' rotation="-90"/>')
    write("annotations.xml", annotations(image(turned)))
    assert convert().objects == [[("black cat", [5, 10, 25, 20])]]


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ('<polyline label="cat" points="1,2;3,4"/>', "of shapes that have no box, the first: a.png shape 2: polyline"),
        ('<tag label="cat"/>', "of shapes that have no box"),
        (
            '<box label="cat" xtl="nan" ytl="5" xbr="30" ybr="25"/>',
            "with a broken box, the first: a.png shape 2: xtl nan",
        ),
        ('<box label="cat" xtl="10" ytl="5" xbr="30"/>', "with a broken box"),
        ('<box label="cat"/>', "without a box or a segmentation"),
        ('<polygon label="cat" points="1,2,3;4,5;6,7"/>', "with a broken box"),
        ('<ellipse label="cat" cx="1" cy="2" rx="3"/>', "with a broken box"),
        (BOX.replace("black_cat", ""), "of categories without a name"),
    ],
)
def test_a_shape_that_is_no_object_is_counted_and_named(
    write: Write, convert: Convert, written: str, reason: str
) -> None:
    write("images/a.png")
    write("annotations.xml", annotations(image(BOX, written)))
    done = convert()
    assert (done.code, len(done.objects[0])) == (0, 1)
    assert f"left out    1 {reason}" in done.said


def test_subsets_of_a_project_are_splits(write: Write, convert: Convert) -> None:
    for subset in ("train", "val"):
        write(f"images/{subset}/a.png")
    meta = "<meta><project><subsets>train\nval</subsets></project></meta>"
    write("annotations.xml", annotations(meta, image(BOX, subset="train"), image(subset="val")))
    assert "its splits are train, val" in convert().said
    done = convert("--split", "val")
    assert (done.objects, done.records[0]["images"]) == ([[]], ["../set/images/val/a.png"])


def test_classes_are_those_of_the_task(write: Write, convert: Convert) -> None:
    write("images/a.png")
    write("annotations.xml", annotations(META, image(BOX)))
    assert convert("--classes").records[0]["classes"] == ["dog", "black cat"]


def test_tracks_are_counted(write: Write, convert: Convert) -> None:
    write("images/a.png")
    write("annotations.xml", annotations(image(BOX), f'<track id="3" label="cat">{BOX}{BOX}</track>'))
    assert "left out    2 of tracks through a video, the first: track 3 shape 1; export it" in convert().said


def test_a_broken_file_leaves_nothing_behind(write: Write, convert: Convert) -> None:
    write("images/a.png")
    write("annotations.xml", annotations(image(BOX)).removesuffix("</annotations>"))
    done = convert()
    assert (done.code, done.records) == (2, [])
    assert "annotations.xml: this is no XML: no element found" in done.said

"""YOLO: what a line of shares means, where files lie, and that no line is lost."""

from collections.abc import Callable
from typing import Any

import pytest

Write = Callable[..., Any]
Convert = Callable[..., Any]

YAML = "train: images/train\nval: images/val\nnames: [cat, traffic_light]\n"
BOX = [10.0, 10.0, 30.0, 20.0]


@pytest.fixture
def labelled(write: Write) -> Callable[..., None]:
    """One image of a split with these lines."""

    def write_all(*lines: str, yaml: str = YAML, split: str = "train") -> None:
        write("data.yaml", yaml)
        write(f"images/{split}/a.png")
        write(f"labels/{split}/a.txt", "\n".join(lines))

    return write_all


@pytest.mark.parametrize(
    "line",
    [
        "0 0.2 0.3 0.2 0.2",
        "0.0  0.2\t0.3 0.2 0.2",
        "0 0.2 0.3 0.2 0.2 0.87",
        "0 0.2 0.3 -0.2 0.2",
        "0 0.1 0.2 0.3 0.2 0.3 0.4",
        "0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4",
    ],
    ids=["a box", "spaces", "with a score", "a negative size", "a polygon", "a turned box"],
)
def test_a_box_is_the_same_however_it_is_written(labelled: Any, convert: Convert, line: str) -> None:
    labelled(line)
    done = convert("--split", "train")
    assert (done.code, done.objects) == (0, [[("cat", BOX)]])
    assert (done.records[0]["width"], done.records[0]["height"]) == (100, 50)
    assert done.records[0]["images"] == ["../set/images/train/a.png"]


def test_key_points_behind_a_box_are_no_polygon(labelled: Any, convert: Convert) -> None:
    labelled("0 0.2 0.3 0.2 0.2 0.9 0.9 2 0.8 0.8 2", yaml=YAML + "kpt_shape: [2, 3]\n")
    assert convert("--split", "train").objects == [[("cat", BOX)]]


def test_polygons_can_be_kept(labelled: Any, convert: Convert) -> None:
    labelled("1 0.1 0.2 0.3 0.2 0.3 0.4")
    (record,) = convert("--split", "train", "--geometry", "poly").records
    assert record["objects"] == [{"desc": "traffic light", "poly": [10, 10, 30, 10, 30, 20]}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.2 0.3 0.2", "with a broken box, the first: labels/train/a.txt:2: 0 0.2 0.3 0.2"),
        ("0 nan 0.3 0.2 0.2", "with a broken box"),
        ("0 x 0.3 0.2 0.2", "with a broken box"),
        ("0", "with a broken box"),
        ("0 0.1 0.2 0.3 0.2 0.3 0.4 0.1", "with a broken box"),
        ("2 0.2 0.3 0.2 0.2", "of categories that are not listed, the first: labels/train/a.txt:2 of class 2"),
        ("-1 0.2 0.3 0.2 0.2", "of categories that are not listed"),
        ("cat 0.2 0.3 0.2 0.2", "of categories that are not listed"),
        ("0 0.2 0.3 0 0.2", "without extent inside the image"),
        ("0 20 30 20 20", "without extent inside the image"),
    ],
)
def test_a_line_that_is_no_object_is_counted_and_named(labelled: Any, convert: Convert, line: str, reason: str) -> None:
    labelled("0 0.2 0.3 0.2 0.2", line)
    done = convert("--split", "train")
    assert (done.code, done.objects) == (0, [[("cat", BOX)]])
    assert f"left out    1 {reason}" in done.said


def test_splits_are_folders_or_lists_however_their_paths_are_written(write: Write, convert: Convert) -> None:
    write(
        "data.yaml", "path: /home/me/set\ntrain: ../train/images\nval: [list.txt, more]\ntest: none\nnames: {3: cat}\n"
    )
    write("list.txt", "./val/images/b.png\n/home/me/set/val/images/c.png\nval/images/b.png\n")
    for name in ("train/images/a", "val/images/b", "val/images/c", "more/d"):
        write(f"{name}.png")
        write(f"{name.replace('images', 'labels')}.txt", "3 0.2 0.3 0.2 0.2\n")
    assert convert("--split", "train").objects == [[("cat", BOX)]]
    done = convert("--split", "val")
    assert [record["images"][0].removeprefix("../set/") for record in done.records] == [
        "val/images/b.png", "val/images/c.png", "more/d.png",
    ]  # fmt: skip
    assert "changed     1 images listed again" in done.said
    assert convert("--split", "test").said.endswith(f"below {write('x', '').parent}\n")


def test_a_split_must_be_named_where_there_are_several(labelled: Any, convert: Convert) -> None:
    labelled()
    for options, said in (
        ((), "its splits are train, val; name one"),
        (("--split", "dev"), "--split dev is not there"),
    ):
        done = convert(*options)
        assert (done.code, done.records) == (2, [])
        assert said in done.said


def test_names_may_stand_in_a_text_file(write: Write, convert: Convert) -> None:
    write("classes.txt", "cat\ndog\n")
    write("images/a.png")
    write("labels/a.txt", "1 0.2 0.3 0.2 0.2")
    assert convert().objects == [[("dog", BOX)]]


def test_labels_without_names_say_what_is_missing(write: Write, convert: Convert) -> None:
    write("images/a.png")
    write("labels/a.txt", "1 0.2 0.3 0.2 0.2")
    done = convert()
    assert done.code == 2
    assert "add data.yaml, or classes.txt" in done.said


def test_labels_may_lie_beside_their_images(write: Write, convert: Convert) -> None:
    write("data.yaml", "train: images\nnames: [cat]")
    for name in ("a", "b"):
        write(f"images/{name}.txt", "0 0.2 0.3 0.2 0.2")
    write("images/a.png")
    done = convert()
    assert done.objects == [[("cat", BOX)]]
    assert "1 of images that are not listed, the first: images/b.txt:1" in done.said


def test_images_without_labels_are_background_unless_all_are(write: Write, labelled: Any, convert: Convert) -> None:
    labelled("0 0.2 0.3 0.2 0.2")
    write("images/train/b.png")
    done = convert("--split", "train")
    assert done.objects == [[("cat", BOX)], []]
    assert "1 images without annotations of their own" in done.said
    (write("labels/train/a.txt", "")).rename(write("labels/train/a.txt", "").with_name("other.txt"))
    done = convert("--split", "train")
    assert done.code == 2
    assert "no image has a label file; that of " in done.said


def test_what_is_lost_with_a_file_is_told_and_the_exit_code_is_1(write: Write, labelled: Any, convert: Convert) -> None:
    labelled("0 0.2 0.3 0.2 0.2")
    write("images/train/broken.png", b"no image")
    write("labels/train/broken.txt", "0 0.2 0.3 0.2 0.2\n1 0.2 0.3 0.2 0.2\n")
    write("images/train/latin.png")
    write("labels/train/latin.txt", b"0 0.2 0.3 0.2 0.2 \xff")
    write("labels/train/orphan.txt", "0 0.2 0.3 0.2 0.2\n\n0 0.2 0.3 0.2 0.2\n")
    done = convert("--split", "train")
    assert (done.code, done.objects) == (1, [[("cat", BOX)]])
    for said in (
        "1 records, 1 objects of 5 annotations, 4 left out",
        "2 of images without a size, the first: labels/train/broken.txt:1 of image images/train/broken.png",
        "2 of images that are not listed, the first: labels/train/orphan.txt:1",
        "error: images/train/broken.png: nothing says its size",
        "error: labels/train/latin.txt: this is no text in UTF-8-SIG",
        "2 files or images could not be converted",
    ):
        assert said in done.said


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("names: [\ntrain: x", "this is no YAML"),
        ("names: 7\ntrain: images/train", "names is '7'; it is a list of names"),
        ("names:\ntrain: images/train", "names is 'None'"),
    ],
)
def test_a_yaml_file_that_cannot_be_used_is_told(labelled: Any, convert: Convert, yaml: str, said: str) -> None:
    labelled(yaml=yaml)
    done = convert()
    assert done.code == 2
    assert said in done.said


def test_a_name_that_yaml_takes_for_something_else_is_none(labelled: Any, convert: Convert) -> None:
    labelled(
        "0 0.2 0.3 0.2 0.2", "1 0.2 0.3 0.2 0.2", "2 0.2 0.3 0.2 0.2", yaml="train: images/train\nnames: [no, 7, a]\n"
    )
    done = convert()
    assert done.objects == [[("7", BOX), ("a", BOX)]]
    assert "1 of categories without a name, the first: labels/train/a.txt:1 of class 0" in done.said

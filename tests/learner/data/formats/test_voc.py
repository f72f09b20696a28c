"""Pascal VOC: boxes, sizes, files, splits, and XML that must not be believed."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

Write = Callable[..., Any]
Convert = Callable[..., Any]

BOX = "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30.5</xmax><ymax>25</ymax></bndbox>"


def xml(*objects: str, name: str = "a.png", size: tuple[Any, Any] | None = (100, 50), head: str = "") -> str:
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    inside = "".join(f"<object>{each}</object>" for each in objects)
    return f"{head}<annotation><filename>{name}</filename>{sides}{inside}</annotation>"


def cat(box: str = BOX) -> str:
    return f"<name>black_cat</name>{box}"


@pytest.fixture
def annotated(write: Write) -> Callable[..., None]:
    """An image with this content of its file."""

    def write_all(content: str | bytes, stem: str = "a") -> None:
        write(f"JPEGImages/{stem}.png")
        write(f"Annotations/{stem}.xml", content)

    return write_all


def test_boxes_are_read_with_their_names(annotated: Any, convert: Convert) -> None:
    annotated(xml(cat(), cat(BOX.replace("30.5", "3"))))
    done = convert()
    assert (done.code, done.objects) == (0, [[("black cat", [10, 5, 30.5, 25]), ("black cat", [3, 5, 10, 25])]])
    assert done.records[0]["images"] == ["../set/JPEGImages/a.png"]


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("<name>cat</name>", "without a box or a segmentation, the first: a.xml object 2"),
        (cat(BOX.replace("30.5", "nan")), "with a broken box, the first: a.xml object 2: xmin 10, ymin 5, xmax nan"),
        (cat(BOX.replace("<xmax>30.5</xmax>", "")), "with a broken box"),
        (cat(BOX.replace("10", "")), "with a broken box"),
        (cat(BOX.replace("30.5", "10")), "without extent inside the image"),
        (BOX, "of categories without a name"),
        (f"<name> </name>{BOX}", "of categories without a name"),
        (f"<part>{cat()}</part>", "of categories without a name"),
    ],
)
def test_an_object_that_is_none_is_counted_and_named(
    annotated: Any, convert: Convert, written: str, reason: str
) -> None:
    annotated(xml(cat(), written))
    done = convert()
    assert (done.code, len(done.objects[0])) == (0, 1)
    assert f"left out    1 {reason}" in done.said


@pytest.mark.parametrize("size", [None, (0, 0), ("", "x"), (30, 90)])
def test_the_file_says_a_size_that_is_missing_or_wrong(annotated: Any, convert: Convert, size: Any) -> None:
    annotated(xml(cat(), size=size))
    done = convert()
    assert done.code == 0
    assert (done.records[0]["width"], done.records[0]["height"]) == (100, 50)
    told = "sizes that the image files contradict, the first: a.xml is 100x50 px, annotated as 30x90"
    assert (told if size == (30, 90) else "1 sizes taken from the image files") in done.said


@pytest.mark.parametrize("size", [(50, 100), (200, 100), (201, 100)])
def test_boxes_of_a_turned_or_resized_picture_are_not_trained_on(annotated: Any, convert: Convert, size: Any) -> None:
    annotated(xml(cat(), size=size))
    done = convert()
    assert done.code == 1
    assert f"a.png is 100x50 px, but the record says {size[0]}x{size[1]}" in done.said


def test_sizes_are_those_of_the_image_as_it_is_seen(write: Write, convert: Convert) -> None:
    path, exif = write("JPEGImages/a.jpg"), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(path, exif=exif)
    write("Annotations/a.xml", xml(cat(), name="a.jpg", size=None))
    done = convert()
    assert (done.code, done.records[0]["width"], done.records[0]["height"]) == (0, 50, 100)


@pytest.mark.parametrize("name", ["", "a", "b.png", "C:\\photos\\a.png", "/home/me/a.jpg", "a.xml"])
def test_an_image_is_found_by_the_name_of_its_annotations(annotated: Any, convert: Convert, name: str) -> None:
    annotated(xml(cat(), name="b.png"), "b")
    annotated(xml(cat(), name=name))
    done = convert()
    assert [record["images"][0].rpartition("/")[2] for record in done.records] == ["a.png", "b.png"]
    assert done.code == 0


def test_a_missing_image_is_told(write: Write, annotated: Any, convert: Convert) -> None:
    annotated(xml(cat()))
    write("Annotations/b.xml", xml(cat(), name="../../gone.png"))
    done = convert()
    assert done.code == 1
    assert "error: line 2: missing image file" in done.said


def test_splits_are_lists_of_images(write: Write, annotated: Any, convert: Convert) -> None:
    for stem in "ab":
        annotated(xml(cat(), name=f"{stem}.png"), stem)
    write("ImageSets/Main/train.txt", "a\n")
    write("ImageSets/Main/cat_train.txt", "a  1\nb -1\n")
    assert len(convert().records) == 2
    write("ImageSets/Main/val.txt", "b\nc\nb\n")
    assert "its splits are train, val" in convert().said
    assert [record["images"] for record in convert("--split", "train").records] == [["../set/JPEGImages/a.png"]]
    done = convert("--split", "val")
    assert (done.code, len(done.records)) == (1, 1)
    assert "error: c.xml: [Errno 2]" in done.said
    assert "1 images listed again" in done.said


def test_files_may_lie_beside_their_images_in_folders_that_are_splits(write: Write, convert: Convert) -> None:
    for split in ("train", "valid"):
        write(f"{split}/a.png")
        write(f"{split}/a.xml", xml(cat()))
    assert convert("--split", "valid").records[0]["images"] == ["../set/valid/a.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_encodings_are_read(annotated: Any, convert: Convert, encoding: str) -> None:
    declared = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    annotated((declared + xml(f"<name>Bär</name>{BOX}")).encode(encoding))
    assert convert().objects[0][0][0] == "Bär"


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "this is no XML: no element found"),
        ("<annotation><object>", "this is no XML"),
        (xml(cat()) + "<more/>", "this is no XML"),
        (xml(f"<name>&b;</name>{BOX}", head=BOMB), "it declares a document type"),
        (xml(cat(), head='<!DOCTYPE x SYSTEM "file:///etc/passwd">'), "it declares a document type"),
        ("<other/>", "its outermost element is <other>, not <annotation>"),
        ("<annotation>" + "<a>" * 99 + "</a>" * 99 + "</annotation>", "elements lie more than 64 deep"),
        ('<?xml version="1.0" encoding="gb2312"?><annotation/>', "this is no XML"),
        ('<?xml version="1.0" encoding="nothing"?><annotation/>', "this is no XML"),
        (b"<annotation>\xff</annotation>", "this is no XML"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_and_its_image_is_not_taught_as_empty(
    annotated: Any, convert: Convert, content: str | bytes, reason: str
) -> None:
    annotated(xml(cat(), name="b.png"), "b")
    annotated(content)
    done = convert()
    assert (done.code, len(done.records)) == (1, 1)
    assert f"error: a.xml: {reason}" in done.said


def test_where_no_file_can_be_read_nothing_is_written(annotated: Any, convert: Convert) -> None:
    annotated(xml(cat(), head=BOMB))
    done = convert("--format", "voc")
    assert (done.code, done.records) == (2, [])
    assert "no image can be converted, 1 could not; the first: a.xml: it declares a document type" in done.said

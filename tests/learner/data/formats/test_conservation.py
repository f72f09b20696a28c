"""Whatever the format and however broken: each object is written, or counted with why it is not."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from learner.data.annotations import Conversion
from learner.data.conversion import records_of
from learner.data.formats.format import Places
from learner.data.formats.table import FORMATS, open_dataset
from learner.detection.record_rules import Changes, Rules
from shared.errors import DataError

Written = tuple[Any, list[Any], int]
"""A name, numbers, and a choice among the shapes of the format."""

NAMES = st.one_of(
    st.sampled_from(["cat", "dog_1", "", " ", "_", "猫"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=0xD7FF)),
)
NUMBERS = st.one_of(
    st.integers(-20, 120),
    st.floats(-1.5, 1.5),
    st.sampled_from([float("nan"), float("inf"), -0.0, 1e308, 10**400, "", "7", "x", "1e2", "٣", None, True]),
)
OBJECTS = st.tuples(
    NAMES,
    st.one_of(st.lists(NUMBERS, max_size=9), st.lists(st.integers(0, 99), min_size=4, max_size=4)),
    st.integers(0, 3),
)
IMAGES = st.lists(st.lists(OBJECTS, max_size=4), min_size=1, max_size=3)


def write_coco(folder: Path, images: Sequence[Sequence[Written]]) -> None:
    rows = [(number, each) for number, objects in enumerate(images) for each in objects]
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(len(images))],
        "categories": [{"id": number, "name": each[0]} for number, (_, each) in enumerate(rows)],
        "annotations": [
            {"image_id": number + (shape == 3), "category_id": place, "bbox": values, "segmentation": [values * shape]}
            for place, (number, (_, values, shape)) in enumerate(rows)
        ],
    }
    (folder / "coco.json").write_text(json.dumps(content))


def write_yolo(folder: Path, images: Sequence[Sequence[Written]]) -> None:
    """Where two objects are alike their labels stand in the next file, which may have no image."""
    (folder / "data.yaml").write_text("train: images\nnames: [cat, dog]")
    (folder / "labels").mkdir()
    for number, objects in enumerate(images):
        lines = [" ".join(str(word).replace(" ", "") for word in (shape, *values)) for _, values, shape in objects]
        with (folder / "labels" / f"{number + (objects[:1] == objects[1:2])}.txt").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


def _element(parent: Element, tag: str, text: Any = None, **attributes: Any) -> Element:
    element = SubElement(parent, tag, {key: str(value) for key, value in attributes.items()})
    element.text = None if text is None else str(text)
    return element


def write_voc(folder: Path, images: Sequence[Sequence[Written]]) -> None:
    for number, objects in enumerate(images):
        root = Element("annotation")
        for name, values, shape in objects:
            item = _element(root, "object")
            if shape:
                _element(item, "name", name)
            box = _element(item, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=False):
                _element(box, tag, value)
        ElementTree(root).write(folder / f"{number}.xml", encoding="utf-8")


def write_labelme(folder: Path, images: Sequence[Sequence[Written]]) -> None:
    kinds = ("rectangle", "polygon", "circle", "line")
    for number, objects in enumerate(images):
        shapes = [
            {
                "label": name,
                "points": [values[at : at + 2] for at in range(0, len(values), 2)],
                "shape_type": kinds[shape],
            }
            for name, values, shape in objects
        ]
        (folder / f"{number}.json").write_text(json.dumps({"shapes": shapes, "imagePath": None}))


def write_cvat(folder: Path, images: Sequence[Sequence[Written]]) -> None:
    root = Element("annotations")
    tags = {"box": ("xtl", "ytl", "xbr", "ybr", "rotation"), "ellipse": ("cx", "cy", "rx", "ry"), "points": ("points",)}
    for number, objects in enumerate(images):
        image = _element(root, "image", name=f"{number}.png")
        for name, values, shape in objects:
            tag = ("box", "ellipse", "points", "polygon")[shape]
            if tag == "polygon":
                said = {"points": ";".join(f"{x},{y}" for x, y in pairwise(values))}
            else:
                said = dict(zip(tags[tag], values, strict=False))
            _element(image, tag, label=name, **said)
    ElementTree(root).write(folder / "annotations.xml", encoding="utf-8")


def write_huggingface(folder: Path, images: Sequence[Sequence[Written]]) -> None:
    """Nothing says the category of a last object of the second shape; those of the first shape are numbers."""
    rows = []
    for number, objects in enumerate(images):
        categories = [name if shape else 3 for name, _, shape in objects]
        cut = len(objects) - (bool(objects) and objects[-1][2] == 1)
        boxes = [values for _, values, _ in objects]
        rows.append({"file_name": f"{number}.png", "objects": {"bbox": boxes, "category": categories[:cut]}})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


WRITERS: dict[str, Callable[[Path, Sequence[Sequence[Written]]], None]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "huggingface": write_huggingface,
}


def test_every_format_is_written_here() -> None:
    assert WRITERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", WRITERS)
@given(images=IMAGES, geometry=st.sampled_from(["bbox_2d", "poly"]))
@settings(max_examples=60, deadline=None)
def test_objects_in_are_objects_out_and_counted_reasons(name: str, images: list[list[Written]], geometry: Any) -> None:
    with TemporaryDirectory() as temporary:
        folder, conversion, records = Path(temporary), Conversion(), []
        files = folder / "images"
        files.mkdir()
        for number in range(len(images)):
            Image.new("1", (100, 50)).save(files / f"{number}.png")
        WRITERS[name](folder, images)
        try:
            dataset = open_dataset(folder, Places(files, folder / "out.jsonl"), name)
            records += records_of(dataset.images(conversion), folder, geometry, conversion)
        except DataError:
            assert not conversion.objects
    written = sum(map(len, images))
    assert conversion.objects + conversion.left_out.total() == conversion.annotations == written
    assert set(conversion.examples) == set(conversion.left_out)
    assert not conversion.lost
    if records:
        assert sum(len(record["objects"]) for record in records) == conversion.objects
    for record in records:
        assert (record["width"], record["height"]) == (100, 50)
        Rules(check_images=False).check(orjson.dumps(record), folder, Changes())


PROGRAM = """
import json, sys
from pathlib import Path
from PIL import Image
from learner.data.from_dataset import main

kind, folder, count = sys.argv[1], Path(sys.argv[2]), 1_000_000
images, each = 1000, count // 1000
(folder / "images").mkdir()
(folder / "labels").mkdir()
for number in range(images):
    Image.new("1", (640, 480)).save(folder / "images" / f"{number}.png")
if kind == "yolo":
    (folder / "data.yaml").write_text("train: images\\nnames: [cat]")
    for number in range(images):
        (folder / "labels" / f"{number}.txt").write_text("0 0.512345 0.423456 0.123456 0.234567\\n" * each)
else:
    with (folder / "coco.json").open("w") as file:
        file.write('{"categories": [{"id": 1, "name": "cat"}], "images": ')
        json.dump([{"id": n, "file_name": f"{n}.png", "width": 640, "height": 480} for n in range(images)], file)
        file.write(', "annotations": [')
        for n in range(count):
            box = [n % 600 + 0.25, n % 400 + 0.75, 31.5, 47.125]
            item = {"id": n, "image_id": n % images, "category_id": 1, "bbox": box}
            file.write(("," if n else "") + json.dumps(item))
        file.write("]}")
sys.exit(main([str(folder), "--out", str(folder / "out.jsonl"), "--format", kind]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yolo", "coco"])
def test_a_million_boxes_take_less_than_two_gibibytes(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1000 records, 1000000 objects of 1000000 annotations, 0 left out" in done.stdout
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"{kind}: {peak_kib >> 10} MiB at most")
    assert peak_kib < 2 << 20

"""CVAT for images 1.1: one XML file, an element an image, an element a shape."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from learner.data.annotations import AnnotatedImage, Annotation, Conversion, Dataset, desc_of
from learner.data.coco import size_as_written
from learner.data.coco_shapes import Box, box_between, box_of, polygons_of
from learner.data.formats.format import WHOLE, Format, Places, Splits, first_files, first_folder
from learner.data.formats.xml import children_of_root, root_of
from learner.data.image_files import ImageFiles
from shared.errors import DataError

ROOT = "annotations"


def find(place: Path) -> Splits:
    """By an XML file with <annotations>. Its splits are the subsets of its images, or several such files."""
    files = [place] if place.is_file() else first_files(place, "*.xml")
    found = [file for file in files if file.suffix == ".xml" and root_of(file) == ROOT]
    if len(found) != 1:
        return {file.stem: partial(_opened, file, None) for file in found}
    (file,) = found
    subsets = _subsets_of(file)
    return {subset: partial(_opened, file, subset) for subset in subsets} or {WHOLE: partial(_opened, file, None)}


def _meta_of(file: Path) -> Element:
    """What a file says of its task; an empty element where it says nothing, or is no XML to its first image."""
    for child in children_of_root(file, ROOT):
        if child.tag == "meta":
            return child
        if child.tag == "image":
            break
    return Element("meta")


def _subsets_of(file: Path) -> list[str]:
    """Names of the subsets of a project; none of a task, which is in one."""
    try:
        subsets = [line.strip() for each in _meta_of(file).iter("subsets") for line in (each.text or "").splitlines()]
    except DataError:  # told when it is opened
        return []
    return [*filter(None, subsets)]


def _opened(file: Path, subset: str | None, places: Places) -> Dataset:
    try:
        labels = [desc_of(name.text) for label in _meta_of(file).iter("label") for name in label.findall("name")]
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    folder = places.images or first_folder(file.parent / "images", file.parent)
    return Dataset(partial(_annotated_images, file, subset, folder), None, labels or None)


def _annotated_images(file: Path, subset: str | None, folder: Path, conversion: Conversion) -> Iterator[AnnotatedImage]:
    """Raises DataError where the file is broken: what follows in it cannot be known."""
    images = ImageFiles(folder)
    try:
        for number, child in enumerate(children_of_root(file, ROOT)):
            if child.tag == "image" and (subset is None or child.get("subset") == subset):
                yield _annotated_image(child, number, images)
            elif child.tag == "track":
                for place, _ in enumerate(child, 1):
                    name = f"track {child.get('id')} shape {place}"
                    conversion.leave_out_alone("of tracks through a video", name, "; export it as CVAT for images")
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def _annotated_image(written: Element, number: int, images: ImageFiles) -> AnnotatedImage:
    name = written.get("name") or ""
    if not name:
        raise DataError(f"<image id={written.get('id')!r}> has no name")
    size = size_as_written(written.get("width"), written.get("height"))
    subset = written.get("subset")
    path = images.find([f"{subset}/{name}" if subset else name], str(number))
    annotations = [_annotation(f"{name} shape {place}", shape) for place, shape in enumerate(written, 1)]
    return AnnotatedImage(name, path, name, size, annotations)


def _annotation(name: str, shape: Element) -> Annotation:
    desc = desc_of(shape.get("label"))
    polygons: list[list[float]] = []
    if shape.tag == "box":
        box = _turned(box_between(*(shape.get(corner) for corner in ("xtl", "ytl", "xbr", "ybr"))), shape)
    elif shape.tag == "ellipse":
        box = _box_of_ellipse(shape)
    elif shape.tag == "mask":
        box = _box_of_mask(shape)
    elif shape.tag == "polygon":
        box, polygons = None, polygons_of([_values_of(shape.get("points"))])
    else:
        return Annotation(name, desc, fault="of shapes that have no box", detail=f": {shape.tag[:40]}")
    shown = ", ".join(f"{key} {value}" for key, value in shape.attrib.items() if key != "label")
    return Annotation(name, desc, box, segmentation=polygons or None, broken=shown[:80])


def _numbers(shape: Element, names: Sequence[str]) -> list[float] | None:
    """Attributes as finite numbers; None unless all are."""
    boxes = [box_between(value, value, value, value) for value in map(shape.get, names)]
    return [box[0] for box in boxes if box] if None not in boxes else None


def _radians(shape: Element) -> float:
    """How far a shape is turned about its centre; 0 where nothing says it."""
    return math.radians((_numbers(shape, ["rotation"]) or [0.0])[0])


def _turned(box: Box | None, shape: Element) -> Box | None:
    """The box around a box that is turned about its centre."""
    angle = _radians(shape)
    if box is None or not angle:
        return box
    half_width, half_height = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    return _around(
        ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
        half_width * cos + half_height * sin,
        half_width * sin + half_height * cos,
    )


def _box_of_ellipse(shape: Element) -> Box | None:
    values = _numbers(shape, ["cx", "cy", "rx", "ry"])
    if values is None:
        return None
    x, y, rx, ry = values
    cos, sin = math.cos(_radians(shape)), math.sin(_radians(shape))
    return _around((x, y), math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos))


def _around(centre: tuple[float, float], half_width: float, half_height: float) -> Box:
    x, y = centre
    return x - half_width, y - half_height, x + half_width, y + half_height


def _box_of_mask(shape: Element) -> Box | None:
    values = _numbers(shape, ["left", "top", "width", "height"])
    return box_of(values) if values is not None else None


def _values_of(points: str | None) -> list[Any]:
    """x, y, x, y, … of "x,y;x,y;…"; none where one of the points is no pair."""
    pairs = [point.split(",") for point in (points or "").split(";") if point]
    return [value for pair in pairs for value in pair] if all(len(pair) == 2 for pair in pairs) else []


CVAT = Format(
    "cvat",
    "annotations.xml with <annotations>, images/",
    "task_7/annotations.xml --out train.jsonl",
    find,
)

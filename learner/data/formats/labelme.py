"""labelme: a JSON file an image, with shapes of which rectangles, polygons and circles are objects."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from learner.data.annotations import AnnotatedImage, Annotation, Conversion, Dataset, desc_of
from learner.data.coco import size_as_written
from learner.data.coco_shapes import Box, box_around, box_between, polygons_of
from learner.data.formats.format import WHOLE, Format, Places, Splits, each_readable, first_files, folders_by_split
from learner.data.formats.json_keys import keys_in
from learner.data.image_files import ImageFiles
from learner.data.text import json_of
from shared.errors import DataError

KEYS = {"shapes", "imagePath"}


def find(place: Path) -> Splits:
    """By the keys of the JSON files in a folder, or in its sub-folders, which are splits then."""
    if place.is_file():
        return {WHOLE: partial(_opened, [place])} if keys_in(place, KEYS) == KEYS else {}
    return {
        split: partial(_opened, sorted(folder.glob("*.json")))
        for split, folder in folders_by_split(place, _holds_annotations).items()
    }


def _holds_annotations(folder: Path) -> bool:
    return any(keys_in(file, KEYS) == KEYS for file in first_files(folder, "*.json"))


def _opened(files: Sequence[Path], places: Places) -> Dataset:
    return Dataset(partial(_annotated_images, files, places.images or files[0].parent), len(files))


def _annotated_images(files: Sequence[Path], folder: Path, conversion: Conversion) -> Iterator[AnnotatedImage]:
    images = ImageFiles(folder)
    yield from each_readable(files, lambda file: _annotated_image(file, images), conversion)


def _annotated_image(file: Path, images: ImageFiles) -> AnnotatedImage:
    content = json_of(file.read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataError("this is no file of labelme: `shapes` is missing or no list")
    written = content.get("imagePath")
    name = written if isinstance(written, str) else ""
    return AnnotatedImage(
        file.name,
        images.find_beside(file, name),
        name or file.stem,
        size_as_written(content.get("imageWidth"), content.get("imageHeight")),
        [_annotation(f"{file.name} shape {number}", shape) for number, shape in enumerate(content["shapes"], 1)],
    )


def _annotation(name: str, shape: Any) -> Annotation:
    if not isinstance(shape, dict):
        return Annotation(name, "", fault="with a broken box", detail=f": {str(shape)[:60]}")
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    desc = desc_of(shape.get("label"))
    if kind not in ("rectangle", "polygon", "circle"):
        return Annotation(name, desc, fault="of shapes that have no box", detail=f": {str(kind)[:40]}")
    values = _values_of(points)
    return Annotation(
        name,
        desc,
        box={"rectangle": _box_between, "circle": _box_of_circle}.get(kind, _no_box)(values),
        segmentation=polygons_of([values]) if kind == "polygon" else None,
        broken=f"points {str(points)[:60]}" if points else "",
    )


def _values_of(points: Any) -> list[Any]:
    """x, y, x, y, … of points; none where one of them is no pair."""
    is_whole = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    return [*chain.from_iterable(points)] if is_whole else []


def _no_box(values: list[Any]) -> Box | None:
    return None


def _box_between(values: list[Any]) -> Box | None:
    """Around two opposite corners, or all four."""
    if len(values) == 4:
        return box_between(*values)
    return box_around([values]) if len(values) == 8 else None


def _box_of_circle(values: list[Any]) -> Box | None:
    """Around a circle of a centre and a point on it."""
    between = box_between(*values) if len(values) == 4 else None
    if between is None:
        return None
    x, y = float(values[0]), float(values[1])
    radius = math.hypot(between[2] - between[0], between[3] - between[1])
    return x - radius, y - radius, x + radius, y + radius


LABELME = Format(
    "labelme",
    "JSON files with shapes and imagePath, beside their images",
    "data_annotated --out train.jsonl",
    find,
)

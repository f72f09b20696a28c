"""Folders of Hugging Face `datasets` with boxes: metadata.jsonl beside the images, or parquet files that hold them."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from learner.data.annotations import AnnotatedImage, Annotation, Conversion, Dataset, desc_of
from learner.data.coco import id_of, size_as_written
from learner.data.coco_shapes import box_of
from learner.data.formats.format import Format, Places, Splits, folders_by_split
from learner.data.formats.parquet import parquet_files, parquet_names, parquet_rows
from learner.data.image_files import ImageFiles
from learner.data.text import json_of, text_of
from shared.errors import DataError

METADATA = "metadata.jsonl"
BOXES = ("bbox", "bboxes")
CATEGORIES = ("categories", "category", "label", "labels")
"""Keys of `objects`, of which the documentation of `datasets` has the first, and other pages of theirs the others."""

Names = Mapping[str, str]
"""Names of classes as words, by their numbers."""


def find(place: Path) -> Splits:
    """By metadata.jsonl in the folder or its sub-folders, which are splits then, or by parquet files."""
    folders = folders_by_split(place, lambda folder: (folder / METADATA).is_file())
    if folders:
        return {split: partial(_opened, place, folder) for split, folder in folders.items()}
    return {split: partial(_opened_parquet, place, files) for split, files in parquet_files(place).items()}


def _opened(place: Path, folder: Path, places: Places) -> Dataset:
    names = _names_of_card(place)
    reader = partial(_annotated_images, folder / METADATA, places.images or folder, names)
    return Dataset(reader, None, [*names.values()] or None)


def _opened_parquet(place: Path, files: list[Path], places: Places) -> Dataset:
    names = {str(number): desc_of(name) for number, name in enumerate(parquet_names(files[0]))} or _names_of_card(place)
    folder = places.images or places.out.with_name(f"{places.out.stem}_images")
    return Dataset(partial(_images_of_parquet, files, folder, names), None, [*names.values()] or None)


def _names_of_card(folder: Path) -> Names:
    """Names of classes by the features that README.md declares in front; none where it does not."""
    try:
        _, front, _ = text_of((folder / "README.md").read_bytes()).split("---", 2)
        card = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError, DataError):
        return {}
    for feature in _dicts_in(card):
        if feature.get("name") == "objects":
            for label in _dicts_in(feature):
                names = label["class_label"].get("names") if isinstance(label.get("class_label"), dict) else None
                entries = names.items() if isinstance(names, dict) else enumerate(names or ())
                if names:
                    return {key: desc_of(name) for number, name in entries if (key := id_of(number))}
    return {}


def _dicts_in(node: Any) -> Iterator[dict[Any, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _dicts_in(child)


def _annotated_images(metadata: Path, folder: Path, names: Names, conversion: Conversion) -> Iterator[AnnotatedImage]:
    images = ImageFiles(folder)
    with metadata.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{metadata.name}:{number}"
            try:
                row = json_of(line) if line.strip() else None
                if row is not None:
                    yield _annotated_image(where, row, images, names, conversion)
            except DataError as error:
                conversion.lost.append(f"{where}: {error}")


def _annotated_image(where: str, row: Any, images: ImageFiles, names: Names, conversion: Conversion) -> AnnotatedImage:
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        raise DataError(f"this is no object with a file_name: {str(row)[:60]}")
    annotations = _annotations(where, row, names, conversion)
    size = size_as_written(row.get("width"), row.get("height"))
    return AnnotatedImage(name, images.find([name], where), name, size, annotations)


def _images_of_parquet(
    files: list[Path], folder: Path, names: Names, conversion: Conversion
) -> Iterator[AnnotatedImage]:
    """The images are written into `folder`, since records name files."""
    for row in parquet_rows(files, folder):
        annotations = _annotations(row.name, row.values, names, conversion)
        size = size_as_written(row.values.get("width"), row.values.get("height"))
        yield AnnotatedImage(row.name, row.path, row.values.get("image_id", row.name), size, annotations)


def _annotations(where: str, row: Mapping[str, Any], names: Names, conversion: Conversion) -> list[Annotation]:
    """The objects of a row: lists of boxes and of categories side by side, or a list of both together."""
    objects = row.get("objects")
    if objects is None:
        conversion.unlabelled += 1
        return []
    if isinstance(objects, dict):
        columns = [_first_of(objects, keys) for keys in (BOXES, CATEGORIES)]
        pairs = [*zip_longest(*(column if isinstance(column, list) else [] for column in columns))]
    elif isinstance(objects, list):
        entries = [entry if isinstance(entry, dict) else {} for entry in objects]
        pairs = [(_first_of(entry, BOXES), _first_of(entry, CATEGORIES)) for entry in entries]
    else:
        raise DataError(f"objects is {str(objects)[:60]!r}, no lists of bbox and categories")
    return [
        _annotation(f"{where} object {place}", box, category, names) for place, (box, category) in enumerate(pairs, 1)
    ]


def _annotation(name: str, box: Any, category: Any, names: Names) -> Annotation:
    desc = desc_of(category) if isinstance(category, str) else names.get(id_of(category) or "", "")
    return Annotation(
        name,
        desc,
        box_of(box),
        broken=f"bbox {str(box)[:60]}" if box else "",
        detail=f" of category {str(category)[:40]}; names are texts in `objects`, or class_label in README.md",
    )


def _first_of(entry: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


HUGGINGFACE = Format(
    "huggingface",
    "metadata.jsonl with file_name and objects beside the images, or parquet files",
    "cppe-5 --split train --out train.jsonl",
    find,
)

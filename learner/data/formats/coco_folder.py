"""COCO and LVIS where they lie: a JSON file, annotations/ with one a split, or one in each split's own folder."""

from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from learner.data.annotations import Dataset
from learner.data.coco import coco_dataset, file_name_of, read_annotations
from learner.data.formats.format import WHOLE, Format, Places, Splits, first_files, first_folder
from learner.data.formats.json_keys import keys_in
from learner.data.image_files import spellings
from shared.errors import DataError

KEYS = {"images", "annotations", "categories"}
"""Keys of an annotation file. One that is named needs any of them, one that is found all."""
_LOOKED_AT = 20
"""Images of which one must lie in a folder for it to be theirs."""


def find(place: Path) -> Splits:
    """By the keys of a JSON file; its split is its own name, or that of its folder."""
    if place.is_file():
        return {WHOLE: partial(_opened, place)} if keys_in(place, KEYS) else {}
    folders = [place, *sorted(folder for folder in place.iterdir() if folder.is_dir())] if place.is_dir() else []
    files = [file for folder in folders for file in first_files(folder, "*.json") if keys_in(file, KEYS) == KEYS]
    in_folder = Counter(file.parent for file in files)
    splits = {}
    for file in files:
        has_own_folder = file.parent not in (place, place / "annotations") and in_folder[file.parent] == 1
        splits[file.parent.name if has_own_folder else file.stem.removeprefix("instances_")] = partial(_opened, file)
    return splits


def _opened(file: Path, places: Places) -> Dataset:
    try:
        content = read_annotations(file.read_bytes())
        return coco_dataset(content, places.images or _folder_of_images(file, content))
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def _folder_of_images(file: Path, content: dict[str, Any]) -> Path:
    """The folder close to an annotation file in which one of the first images lies; else the likeliest."""
    split, around = file.stem.removeprefix("instances_"), file.parent.parent
    names = [name for image in islice(content["images"], _LOOKED_AT) for name in spellings(file_name_of(image))]
    for folder in (
        file.parent,
        file.parent / "images",
        around / "images" / split,
        around / split,
        around / "images",
        around,
    ):
        if any((folder / name).is_file() for name in names):
            return folder
    return first_folder(file.parent / "images", file.parent)


COCO = Format(
    "coco",
    "a JSON file with images, annotations and categories, or annotations/ with such",
    "coco --split val2017 --out val.jsonl",
    find,
)

"""YOLO as ultralytics has it: a line of shares an object in a text file beside each image, names in data.yaml."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from learner.data.annotations import AnnotatedImage, Annotation, Conversion, Dataset, desc_of
from learner.data.coco import id_of
from learner.data.coco_shapes import box_of, polygons_of
from learner.data.formats.format import WHOLE, Format, Places, Splits
from learner.data.image_files import SUFFIXES, images_below, spellings
from learner.data.text import text_of
from shared.errors import DataError

SPLITS = ("train", "val", "test")
NAME_FILES = ("classes.txt", "obj.names")
_NAMES = re.compile(r"^['\"]?names['\"]?\s*:", re.MULTILINE)


@dataclass(frozen=True)
class _Labels:
    """What the labels of a data set in `folder` mean: names by class, and coordinates of key points behind a box."""

    folder: Path
    names: Mapping[str, str]
    num_keypoint_values: int = 0


def find(place: Path) -> Splits:
    """By a YAML file with names, else by the names in a text file beside labels/."""
    if place.is_file():
        return _splits_of_yaml(place) if place.suffix in (".yaml", ".yml") and _has_names(place) else {}
    if not place.is_dir():
        return {}
    files = [path for path in sorted(place.iterdir()) if path.suffix in (".yaml", ".yml") and _has_names(path)]
    if len(files) > 1:
        raise DataError(f"it has {files[0].name} and {files[1].name}, both with names; name one in its place")
    return _splits_of_yaml(files[0]) if files else _splits_of_names(place)


def _splits_of_yaml(path: Path) -> Splits:
    try:
        content = yaml.safe_load(text_of(path.read_bytes()))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: this is no mapping with names")
    root = path.parent
    if isinstance(content.get("path"), str):
        root = next((root / name for name in spellings(content["path"]) if (root / name).is_dir()), root)
    labels = _Labels(root, _names_of(content.get("names"), path), _num_keypoint_values(content.get("kpt_shape")))
    return {split: partial(_opened, labels, content[split]) for split in SPLITS if content.get(split)}


def _names_of(names: Any, path: Path) -> dict[str, str]:
    """Names as words, by their class."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(f"{path}: names is {str(names)[:60]!r}; it is a list of names, or a name for each class number")
    return {key: _words_of(name) for number, name in names.items() if (key := id_of(number)) is not None}


def _words_of(name: Any) -> str:
    """A name as words, empty for none: YAML takes `no` and `on` without quotes for something else than a text."""
    return desc_of(str(name) if type(name) in (int, float) else name)


def _num_keypoint_values(shape: Any) -> int:
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(type(side) is int for side in shape)
    return shape[0] * shape[1] if is_shape else 0


def _splits_of_names(place: Path) -> Splits:
    """Without a YAML file: images/ with the splits below it, or with the images."""
    if not (place / "labels").is_dir() or not any((place / "labels").rglob("*.txt")):
        return {}
    files = [path for folder in (place, place / "labels") for name in NAME_FILES if (path := folder / name).is_file()]
    if not files:
        raise DataError(f"it has labels/ and no names for them: add data.yaml, or {NAME_FILES[0]} with a name a line")
    names = text_of(files[0].read_bytes()).splitlines()
    labels = _Labels(place, {str(number): desc_of(name) for number, name in enumerate(names)})
    images = place / "images"
    folders = [folder for folder in sorted(images.iterdir()) if folder.is_dir()] if images.is_dir() else []
    is_flat = not folders or any(path.suffix.lower() in SUFFIXES for path in images.iterdir())
    splits = {WHOLE: images} if is_flat else {folder.name: folder for folder in folders}
    return {split: partial(_opened, labels, str(folder)) for split, folder in splits.items()}


def _opened(labels: _Labels, split: Any, places: Places) -> Dataset:
    """`split` is a folder of images, a text file that lists them, or several of both."""
    roots = [root for root in (places.images, labels.folder) if root is not None]
    images: list[Path] = []
    folders: list[Path] = []
    for written in split if isinstance(split, list) else [split]:
        place = _place_of(str(written), roots)
        if place.is_dir():
            folders.append(place)
            images += images_below(place)
        else:
            images += _listed(place, labels.folder)
    once = list(dict.fromkeys(images))
    reader = partial(_annotated_images, labels, once, folders, len(images) - len(once))
    return Dataset(reader, len(once), list(labels.names.values()))


def _place_of(written: str, roots: Iterable[Path]) -> Path:
    for root in roots:
        for name in spellings(written):
            if (root / name).exists():
                return root / name
    raise DataError(f"{written} is neither a folder of images nor a list of them below {', '.join(map(str, roots))}")


def _listed(file: Path, root: Path) -> Iterator[Path]:
    """The images that a text file lists; one that is nowhere is taken as it is written."""
    for line in filter(None, map(str.strip, text_of(file.read_bytes()).splitlines())):
        found = (folder / name for name in spellings(line) for folder in (root, file.parent))
        yield next((path for path in found if path.is_file()), root / line)


def _annotated_images(
    labels: _Labels, images: Sequence[Path], folders: Sequence[Path], repeated: int, conversion: Conversion
) -> Iterator[AnnotatedImage]:
    """Also counts labels of images that are not there, and raises DataError when no image has labels."""
    conversion.listed_again += repeated
    used: set[Path] = set()
    for image in images:
        name = _shown(image, labels)
        path = _label_file(image)
        annotations: list[Annotation] | None = []
        if path.is_file():
            used.add(path)
            annotations = _annotations(path, labels, conversion)
        else:
            conversion.unlabelled += 1
        if annotations is not None:
            yield AnnotatedImage(name, image, name, None, annotations, in_shares=True)
    for path in sorted({path for folder in folders for path in _label_folder(folder).rglob("*.txt")} - used):
        if path.name not in NAME_FILES:
            for annotation in _annotations(path, labels, conversion) or ():
                conversion.leave_out_alone("of images that are not listed", annotation.name)
    if images and not used:
        raise DataError(f"no image has a label file; that of {images[0]} would be {_label_file(images[0])}")


def _annotations(path: Path, labels: _Labels, conversion: Conversion) -> list[Annotation] | None:
    """What stands in a label file; None for one that cannot be read, which is told."""
    name = _shown(path, labels)
    try:
        lines = text_of(path.read_bytes()).splitlines()
    except (OSError, DataError) as error:
        conversion.lost.append(f"{name}: {error}")
        return None
    return [
        _annotation(f"{name}:{number}", words, labels)
        for number, line in enumerate(lines, 1)
        if (words := line.split())
    ]


def _annotation(where: str, words: Sequence[str], labels: _Labels) -> Annotation:
    """A line: a class, then centre and size (key points or a score may follow), or the corners of a polygon."""
    key, values = _class_of(words[0]), words[1:]
    desc = labels.names.get(key)
    is_box = len(values) in (4, 5) or len(values) == 4 + labels.num_keypoint_values
    polygons = [] if is_box else polygons_of([values])
    return Annotation(
        name=where,
        desc=desc or "",
        box=_box_around_centre(values[:4]) if is_box else None,
        segmentation=polygons or None,
        broken=" ".join(words)[:60],
        fault="of categories that are not listed" if desc is None else None,
        detail=f" of class {words[0][:20]}",
    )


def _box_around_centre(values: Sequence[str]) -> tuple[float, float, float, float] | None:
    box = box_of([*values])
    if box is None:
        return None
    half_width, half_height = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    x, y = float(values[0]), float(values[1])
    return x - half_width, y - half_height, x + half_width, y + half_height


def _class_of(word: str) -> str:
    """A class number as the names have it: 3 and 3.0 are one."""
    try:
        return id_of(float(word)) or word
    except ValueError:
        return word


def _label_folder(images: Path) -> Path:
    """Where the labels of a folder of images lie: the last `images` in its path is `labels` there, if there is such."""
    parts = list(images.parts)
    for place in reversed(range(len(parts))):
        if parts[place] == "images":
            labels = Path(*parts[:place], "labels", *parts[place + 1 :])
            return labels if labels.is_dir() else images
    return images


def _label_file(image: Path) -> Path:
    return (_label_folder(image.parent) / image.name).with_suffix(".txt")


def _shown(path: Path, labels: _Labels) -> str:
    return path.relative_to(labels.folder).as_posix() if path.is_relative_to(labels.folder) else str(path)


def _has_names(path: Path) -> bool:
    try:
        return _NAMES.search(text_of(path.read_bytes())) is not None
    except (OSError, DataError):
        return False


YOLO = Format(
    "yolo",
    "data.yaml with names, images/ and labels/",
    "datasets/coco8/data.yaml --split train --out train.jsonl",
    find,
)

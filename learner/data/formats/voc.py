"""Pascal VOC: an XML file an image, also as labelImg and Roboflow write it."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

from learner.data.annotations import AnnotatedImage, Annotation, Conversion, Dataset, desc_of
from learner.data.coco import size_as_written
from learner.data.coco_shapes import box_between
from learner.data.formats.format import (
    WHOLE,
    Format,
    Places,
    Splits,
    each_readable,
    first_files,
    first_folder,
    folders_by_split,
)
from learner.data.formats.xml import children_of_root, root_of
from learner.data.image_files import ImageFiles
from learner.data.text import text_of

ROOT = "annotation"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find(place: Path) -> Splits:
    """By Annotations/ or the XML files of a folder; splits are lists in ImageSets/Main, or sub-folders."""
    folders = folders_by_split(place, _holds_annotations)
    if set(folders) != {WHOLE}:
        return {split: partial(_opened, folder, None) for split, folder in folders.items()}
    lists = {file.stem: file for file in sorted((place / "ImageSets" / "Main").glob("*.txt")) if _is_of_images(file)}
    whole = {} if len(lists) > 1 else {WHOLE: partial(_opened, place, None)}
    return {**whole, **{split: partial(_opened, place, file) for split, file in lists.items()}}


def _holds_annotations(folder: Path) -> bool:
    return any(root_of(file) == ROOT for file in first_files(_annotation_folder(folder), "*.xml"))


def _annotation_folder(folder: Path) -> Path:
    return first_folder(folder / "Annotations", folder / "annotations", folder)


def _is_of_images(file: Path) -> bool:
    """Whether a list names images alone: those of a class say behind each whether it is there."""
    with file.open("rb") as lines:
        return len(lines.readline().split()) == 1


def _opened(folder: Path, listed: Path | None, places: Places) -> Dataset:
    below = _annotation_folder(folder)
    if listed is None:
        files = sorted(below.glob("*.xml"))
    else:
        files = [below / f"{name}.xml" for name in text_of(listed.read_bytes()).split()]
    once = list(dict.fromkeys(files))
    images = places.images or first_folder(folder / "JPEGImages", folder / "images", folder)
    return Dataset(partial(_annotated_images, once, images, len(files) - len(once)), len(once))


def _annotated_images(
    files: Sequence[Path], folder: Path, repeated: int, conversion: Conversion
) -> Iterator[AnnotatedImage]:
    conversion.listed_again += repeated
    images = ImageFiles(folder)
    yield from each_readable(files, lambda file: _annotated_image(file, images), conversion)


def _annotated_image(file: Path, images: ImageFiles) -> AnnotatedImage:
    name, size = "", None
    annotations: list[Annotation] = []
    for child in children_of_root(file, ROOT):
        if child.tag == "filename":
            name = (child.text or "").strip()
        elif child.tag == "size":
            size = size_as_written(child.findtext("width"), child.findtext("height"))
        elif child.tag == "object":
            annotations.append(_annotation(f"{file.name} object {len(annotations) + 1}", child))
    return AnnotatedImage(file.name, images.find_beside(file, name), name or file.stem, size, annotations)


def _annotation(name: str, written: Element) -> Annotation:
    box = written.find("bndbox")
    values = [box.findtext(corner) for corner in CORNERS] if box is not None else []
    return Annotation(
        name=name,
        desc=desc_of(written.findtext("name")),
        box=box_between(*values) if values else None,
        broken=", ".join(f"{corner} {value}" for corner, value in zip(CORNERS, values, strict=False))[:60],
    )


VOC = Format(
    "voc",
    "Annotations/*.xml with <annotation>, JPEGImages/",
    "VOCdevkit/VOC2012 --split trainval --out train.jsonl",
    find,
)

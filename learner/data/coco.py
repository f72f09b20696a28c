"""COCO and LVIS annotation files to annotated images."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from learner.data.annotations import AnnotatedImage, Annotation, Conversion, Dataset, LeftOut, desc_of
from learner.data.coco_shapes import box_of
from learner.data.image_files import ImageFiles
from learner.data.text import json_of
from shared.errors import DataError


def coco_dataset(content: dict[str, Any], images: Path) -> Dataset:
    """What the content of an annotation file describes; `images` is the folder of the files."""
    names = [desc_of(entry.get("name")) for entry in content["categories"]]
    return Dataset(partial(annotated_images, content, images), len(content["images"]), names)


def read_annotations(data: bytes) -> dict[str, Any]:
    """The parts of an annotation file. Raises DataError for what is none."""
    content = json_of(data)
    if isinstance(content, list):
        raise DataError("this is a list, such as one of results; annotations are an object with images and categories")
    if not isinstance(content, dict):
        raise DataError("this is no COCO or LVIS annotation file, which is a JSON object")
    for part in ("images", "annotations", "categories"):
        if not isinstance(content.get(part), list):
            raise DataError(f"this is no COCO or LVIS annotation file: `{part}` is missing or no list")
        for place, entry in enumerate(content[part]):
            if not isinstance(entry, dict):
                raise DataError(f"{part}[{place}] is {str(entry)[:60]!r}, no object")
    return content


def file_name_of(image: dict[str, Any]) -> str:
    """The name that an image has; LVIS v1 has only a URL, whose last two parts are folder and file."""
    name, url = image.get("file_name"), image.get("coco_url")
    if isinstance(name, str) and name:
        return name
    if not isinstance(url, str):
        raise DataError(f"{_shown(image)} has no file_name, and no coco_url that is a text")
    return "/".join(url.split("/")[-2:])


def annotated_images(content: dict[str, Any], images: Path, conversion: Conversion) -> Iterator[AnnotatedImage]:
    """Yield the images in the order of the file, with their annotations in theirs. `images` is the folder of the files.

    Annotations of images that are not listed are counted at once. Raises DataError for ids that are missing or stand
    twice, and for an image without a name.
    """
    names = {key: desc_of(entry.get("name")) for key, entry in by_id(content["categories"], "categories").items()}
    entries = by_id(content["images"], "images")
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        key = id_of(annotation.get("image_id"))
        if key in entries:
            of_image[key].append(annotation)
        else:
            name = f"annotation {annotation.get('id')}"
            detail = f" of image {annotation.get('image_id')}"
            conversion.leave_out_alone("of images that are not listed", name, detail)
    files = ImageFiles(images)
    for key, image in entries.items():
        yield AnnotatedImage(
            name=key,
            path=files.find((file_name_of(image),), key),
            image_id=image["id"],
            size=size_as_written(image.get("width"), image.get("height")),
            annotations=[_annotation(each, names) for each in of_image.pop(key, ())],
        )


def by_id(entries: list[dict[str, Any]], part: str) -> dict[str, dict[str, Any]]:
    """Entries by their ids. Raises DataError, naming both entries, for an id that stands twice, and for one missing."""
    found: dict[str, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        key = id_of(entry.get("id"))
        if key is None:
            raise DataError(f"{part}[{place}] has the id {entry.get('id')!r}; ids are whole numbers or texts")
        if key in found:
            both = f"{_shown(found[key])} and {_shown(entry)}"
            raise DataError(f"{part}: two entries have the id {key}: {both}; give each its own")
        found[key] = entry
    return found


def id_of(value: Any) -> str | None:
    """An id as it is compared: 7, 7.0 and "7" are one id, however large; None for what is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return value.strip() or None if isinstance(value, str) else None


def size_as_written(width: Any, height: Any) -> tuple[int, int] | None:
    """Width and height in px, also where they are texts; None unless both are whole numbers above 0."""
    sides = _side(width), _side(height)
    return sides if all(sides) else None


def _annotation(written: dict[str, Any], names: dict[str, str]) -> Annotation:
    desc = names.get(id_of(written.get("category_id")) or "")
    fault: LeftOut | None = None
    if written.get("iscrowd") in (1, "1"):  # True, too
        fault = "crowds"
    elif desc is None:
        fault = "of categories that are not listed"
    bbox = written.get("bbox")
    is_missing = not bbox or (isinstance(bbox, list) and all(value is None for value in bbox))
    return Annotation(
        name=f"annotation {written.get('id')}",
        desc=desc or "",
        box=box_of(bbox),
        segmentation=written.get("segmentation"),
        broken="" if is_missing else f"bbox {str(bbox)[:60]}",
        fault=fault,
        detail="" if fault == "crowds" else f" of category {written.get('category_id')}",
    )


def _side(value: Any) -> int:
    """A side in px; 0 for what is no whole number above it."""
    try:
        return int(float(value)) if not isinstance(value, bool) and float(value) == int(float(value)) > 0 else 0
    except (TypeError, ValueError, OverflowError):
        return 0


def _shown(entry: dict[str, Any]) -> str:
    name = entry.get("file_name", entry.get("name", entry.get("coco_url")))
    return f"{entry.get('id')!r} ({str(name)[:80]!r})"

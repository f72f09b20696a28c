"""COCO and LVIS annotations to records: every annotation becomes an object, or is counted by the reason it does not."""

import codecs
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from learner.data.coco_files import ImageFiles
from learner.data.coco_shapes import Box, box_around, box_of, clipped, has_extent, polygons_of
from learner.data.smells import Smells
from shared.errors import DataError
from shared.images import BadImage, image_size

Geometry = Literal["bbox_2d", "poly"]

LeftOut = Literal[
    "crowds",
    "of images that are not listed",
    "of categories that are not listed",
    "of categories without a name",
    "without a box or a segmentation",
    "with a broken box",
    "without extent inside the image",
]
"""Why an annotation is no object."""

_CLIPPED_PX = 1.0
"""A box that reaches further out of its image is counted as clipped."""
_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EXACT_JSON_INT = 2**53


@dataclass
class Conversion:
    """What became of the annotations; filled by `convert` as it goes. `examples` has the first of each reason."""

    images: int = 0
    annotations: int = 0
    objects: int = 0
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    examples: dict[LeftOut, str] = field(default_factory=dict)
    clipped: int = 0
    boxes_of_segmentations: int = 0
    boxes_for_polygons: int = 0
    sizes_of_files: int = 0
    smells: Smells = field(default_factory=Smells)

    def leave_out(self, reason: LeftOut, annotation: Any, detail: str = "") -> None:
        """Count an annotation that becomes no object."""
        self.left_out[reason] += 1
        name = annotation.get("id") if isinstance(annotation, dict) else annotation
        self.examples.setdefault(reason, f"annotation {name}{detail}")


def read_annotations(data: bytes) -> dict[str, Any]:
    """The parts of an annotation file. Raises DataError for what is none.

    Python's own reader takes NaN where nobody looks, as some tools write it, and keeps whole numbers exact.
    """
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        content = json.loads(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise DataError(f"this is no text in {encoding.upper()}: {error.reason} at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"this is no JSON: {error}") from None
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


def convert(
    content: dict[str, Any], images: Path, out_folder: Path, geometry: Geometry, conversion: Conversion
) -> Iterator[dict[str, Any]]:
    """Yield one record an image, in the order of the file, objects in the order of their annotations.

    `images` is the folder of the image files; their paths are written relative to `out_folder`. With "poly", an object
    of one whole polygon keeps it; one in several parts or given as a run-length mask gets its box. A box that is
    missing or has no extent is taken from the segmentation.

    Raises DataError for ids that are missing or stand twice, for an image without a size, and when no annotation at all
    becomes an object.
    """
    names = {key: desc_of(entry.get("name")) for key, entry in by_id(content["categories"], "categories").items()}
    entries = by_id(content["images"], "images")
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        conversion.annotations += 1
        key = id_of(annotation.get("image_id"))
        if key in entries:
            of_image[key].append(annotation)
        else:
            conversion.leave_out("of images that are not listed", annotation, f" of image {annotation.get('image_id')}")
    files = ImageFiles(images)
    for key, image in entries.items():
        path = _file_of(files, image, key)
        size = _size_of(image, path, conversion)
        found = [_object(annotation, names, size, geometry, conversion) for annotation in of_image[key]]
        objects = [item for item in found if item is not None]
        conversion.images += 1
        conversion.objects += len(objects)
        yield {
            "images": [os.path.relpath(path, out_folder)],
            "width": size[0],
            "height": size[1],
            "objects": objects,
            "metadata": {"image_id": _as_json(image["id"])},
        }
    _check_any(conversion, entries)


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


def desc_of(category: Any) -> str:
    """A category's name as words, empty for one that has none; LVIS joins words by underscores."""
    if not isinstance(category, str):
        return ""
    words = " ".join(_UNSPEAKABLE.sub(" ", category.replace("_", " ")).split())
    return words.encode("utf-8", "ignore").decode("utf-8")  # half a character, as a broken escape leaves it


def _object(
    annotation: dict[str, Any],
    names: dict[str, str],
    size: tuple[int, int],
    geometry: Geometry,
    conversion: Conversion,
) -> dict[str, Any] | None:
    """An annotation as an object of an image of `size` px, or None when it is left out."""
    if annotation.get("iscrowd") in (1, "1"):  # True, too
        conversion.leave_out("crowds", annotation)
        return None
    desc = names.get(id_of(annotation.get("category_id")) or "")
    if not desc:
        reason: LeftOut = "of categories that are not listed" if desc is None else "of categories without a name"
        conversion.leave_out(reason, annotation, f" of category {annotation.get('category_id')}")
        return None
    box = _box(annotation, size, conversion)
    if box is None:
        return None
    if geometry == "poly":
        parts = polygons_of(annotation.get("segmentation"))
        polygon = clipped(parts[0], size) if len(parts) == 1 and _is_whole(annotation) else []
        if polygon and len(set(polygon[0::2])) > 1 and len(set(polygon[1::2])) > 1:
            return {"desc": desc, "poly": polygon}
        conversion.boxes_for_polygons += 1
    return {"desc": desc, "bbox_2d": box}


def _box(annotation: dict[str, Any], size: tuple[int, int], conversion: Conversion) -> list[float] | None:
    """The annotation's box in px, clipped to the image, or None when it is left out."""
    written = annotation.get("bbox")
    box = box_of(written)
    if not has_extent(box):
        around = box_around(annotation.get("segmentation"))
        if around is not None:
            conversion.boxes_of_segmentations += 1
            box = around
    if box is None:
        is_missing = not written or (isinstance(written, list) and all(value is None for value in written))
        reason: LeftOut = "without a box or a segmentation" if is_missing else "with a broken box"
        conversion.leave_out(reason, annotation, "" if is_missing else f": bbox {str(written)[:60]}")
        return None
    inside = clipped(box, size)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        conversion.leave_out("without extent inside the image", annotation, f": {_in_px(box)}")
        return None
    is_clipped = any(abs(a - b) > _CLIPPED_PX for a, b in zip(inside, box, strict=True))
    conversion.clipped += inside != [round(value, 2) for value in box]
    conversion.smells.add(*size, box, clipped=is_clipped)
    return inside


def _is_whole(annotation: dict[str, Any]) -> bool:
    """Whether the segmentation is one polygon: none of its parts was left out as broken."""
    segmentation = annotation.get("segmentation")
    return isinstance(segmentation, list) and (len(segmentation) == 1 or not isinstance(segmentation[0], list))


def _file_of(files: ImageFiles, image: dict[str, Any], key: str) -> Path:
    try:
        return files.find(image, key)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{_shown(image)} has no file_name, and no coco_url that is a text") from None


def _size_of(image: dict[str, Any], path: Path, conversion: Conversion) -> tuple[int, int]:
    """Width and height in px: as they are written, or of the file where they are not."""
    size = tuple(_side(image.get(name)) for name in ("width", "height"))
    if all(side > 0 for side in size):
        return size[0], size[1]
    try:
        found = image_size(path)
    except (OSError, ValueError, BadImage) as error:
        raise DataError(
            f"{_shown(image)} has width {image.get('width')!r} and height {image.get('height')!r}, and its file cannot "
            f"say them: {error}"
        ) from None
    conversion.sizes_of_files += 1
    return found


def _side(value: Any) -> int:
    """A side in px; 0 for what is no whole number above it."""
    try:
        return int(value) if not isinstance(value, bool) and float(value) == int(float(value)) > 0 else 0
    except (TypeError, ValueError, OverflowError):
        return 0


def _check_any(conversion: Conversion, entries: dict[str, dict[str, Any]]) -> None:
    """Raise DataError when all annotations were left out, unless as crowds."""
    if conversion.objects or conversion.annotations == conversion.left_out["crowds"]:
        return
    reasons = conversion.left_out.items()
    told = "; ".join(f"{count} {reason}, {conversion.examples[reason]}" for reason, count in reasons if count)
    listed = ", ".join(list(entries)[:3])
    raise DataError(f"none of {conversion.annotations} annotations is an object: {told} (images listed: {listed}, …)")


def _as_json(value: Any) -> Any:
    """An id that every reader of JSON keeps: a whole number beyond those that floats hold goes as a text."""
    return str(value) if isinstance(value, int) and abs(value) > _EXACT_JSON_INT else value


def _in_px(box: Box) -> str:
    return "box " + ", ".join(f"{value:g}" for value in box)


def _shown(entry: dict[str, Any]) -> str:
    name = entry.get("file_name", entry.get("name", entry.get("coco_url")))
    return f"{entry.get('id')!r} ({str(name)[:80]!r})"

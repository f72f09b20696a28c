"""`python -m learner.data.from_coco ANNOTATIONS.json --images DIR --out FILE.jsonl`: COCO and LVIS JSON to JSONL."""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from shared.errors import DataError

Geometry = Literal["bbox_2d", "poly"]


@dataclass
class Conversion:
    """What became of the annotations; filled by `convert` as it goes."""

    images: int = 0
    objects: int = 0
    crowds: int = 0
    without_box: int = 0
    without_extent: int = 0
    clipped: int = 0
    boxes_for_polygons: int = 0


def convert(
    annotations: dict[str, Any], images: Path, out_folder: Path, geometry: Geometry, conversion: Conversion
) -> Iterator[dict[str, Any]]:
    """Yield one record an image, in the order of the file, objects in the order of their annotations.

    `images` is the folder of the image files; their paths are written relative to `out_folder`. Crowd annotations and
    those without a box or without extent inside the image are left out. With "poly", an object of one whole polygon
    keeps it; one in several parts or given as a run-length mask gets its box. Raises DataError when what is needed is
    missing or of another type, with the annotation's id where it is an annotation's.
    """
    try:
        names = {category["id"]: desc_of(category["name"]) for category in annotations["categories"]}
        of_image = defaultdict(list)
        for annotation in annotations["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        for image in annotations["images"]:
            size = image["width"], image["height"]
            objects = [
                item
                for annotation in of_image[image["id"]]
                if (item := _object(annotation, names, size, geometry, conversion)) is not None
            ]
            conversion.images += 1
            conversion.objects += len(objects)
            yield {
                "images": [os.path.relpath(images / file_name(image), out_folder)],
                "width": size[0],
                "height": size[1],
                "objects": objects,
                "metadata": {"image_id": image["id"]},
            }
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"this is no COCO or LVIS annotation file: {error!r} is missing or of another type") from None


def write_jsonl(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """Write a JSONL file that is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as lines:
            lines.writelines(orjson.dumps(record) + b"\n" for record in records)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def desc_of(category: str) -> str:
    """A category's name as words; LVIS joins them by underscores."""
    return " ".join(category.replace("_", " ").split())


def file_name(image: dict[str, Any]) -> str:
    """Path of an image under the image folder; LVIS v1 has only a URL, whose last two parts are folder and file."""
    name = image.get("file_name")
    return str(name) if name else "/".join(image["coco_url"].split("/")[-2:])


def _object(
    annotation: dict[str, Any],
    names: dict[int, str],
    size: tuple[int, int],
    geometry: Geometry,
    conversion: Conversion,
) -> dict[str, Any] | None:
    """An annotation as an object of an image of `size` px, or None when it is left out."""
    try:
        shape = _geometry(annotation, size, geometry, conversion)
        return None if shape is None else {"desc": names[annotation["category_id"]], **shape}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"annotation {annotation.get('id')} of image {annotation['image_id']}: {error!r}; it needs a known "
            f"category_id and a bbox [x, y, width, height], got {annotation.get('category_id')} and "
            f"{annotation.get('bbox')}"
        ) from None


def _geometry(
    annotation: dict[str, Any], size: tuple[int, int], geometry: Geometry, conversion: Conversion
) -> dict[str, list[float]] | None:
    """The annotation's shape in px, clipped to the image, or None when it is left out."""
    if annotation.get("iscrowd"):
        conversion.crowds += 1
        return None
    if not annotation.get("bbox"):
        conversion.without_box += 1
        return None
    x, y, width, height = annotation["bbox"]
    corners = [x, y, x + width, y + height]
    box = _clipped(corners, size)
    if box[2] <= box[0] or box[3] <= box[1]:
        conversion.without_extent += 1
        return None
    conversion.clipped += box != corners
    if geometry == "bbox_2d":
        return {"bbox_2d": box}
    match annotation.get("segmentation"):
        case [[*polygon]] if len(polygon) >= 6 and len(polygon) % 2 == 0:
            return {"poly": _clipped(polygon, size)}
    conversion.boxes_for_polygons += 1
    return {"bbox_2d": box}


def _clipped(values: Sequence[float], size: tuple[int, int]) -> list[float]:
    """x, y, x, y, … moved into an image of `size` px, to a hundredth of a pixel."""
    return [round(min(max(value, 0), size[place % 2]), 2) for place, value in enumerate(values)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="boxloop data from-coco", description="Convert COCO or LVIS annotations.")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS.json")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the image files")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--geometry", choices=("bbox_2d", "poly"), default="bbox_2d")
    options = parser.parse_args(arguments)
    conversion = Conversion()
    try:
        annotations = orjson.loads(options.annotations.read_bytes())
        folder = options.out.resolve().parent
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(options.out, convert(annotations, options.images.resolve(), folder, options.geometry, conversion))
    except (OSError, DataError, orjson.JSONDecodeError) as error:
        print(f"{options.annotations}: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out}: {conversion.images} records, {conversion.objects} objects; left out {conversion.crowds} "
        f"crowds, {conversion.without_box} without a box and {conversion.without_extent} without extent; clipped "
        f"{conversion.clipped}; {conversion.boxes_for_polygons} boxes for want of a single whole polygon"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

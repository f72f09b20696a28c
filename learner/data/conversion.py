"""Annotated images of any format to records: every annotation becomes an object, or is counted by why it does not."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from learner.data.annotations import AnnotatedImage, Annotation, Conversion, LeftOut
from learner.data.coco_shapes import Box, box_around, clipped, has_extent, polygons_of
from learner.data.text import EXACT_JSON_INT
from shared.errors import DataError
from shared.images import BadImage, image_size

Geometry = Literal["bbox_2d", "poly"]

_CLIPPED_PX = 1.0
"""A box that reaches further out of its image is counted as clipped."""
_FIRST_IMAGES = 3

Size = tuple[int, int]
"""Width and height in px."""


def records_of(
    images: Iterable[AnnotatedImage],
    out_folder: Path,
    geometry: Geometry,
    conversion: Conversion,
    classes: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yield one record an image in their order, objects in the order of their annotations.

    Paths of image files are written relative to `out_folder`, `classes` into each record. With "poly", an object of one
    whole polygon keeps it; one in several parts or given as a run-length mask gets its box. A box that is missing or
    has no extent is taken from the segmentation.

    Raises DataError when there is no image at all, and when no annotation at all becomes an object.
    """
    for image in images:
        conversion.annotations += len(image.annotations)
        if len(conversion.first_images) < _FIRST_IMAGES:
            conversion.first_images.append(image.name)
        size = _size_of(image, conversion)
        if size is None:
            for annotation in image.annotations:
                conversion.leave_out("of images without a size", annotation.name, f" of image {image.name}")
            continue
        found = [_object(_in_px(each, image, size), size, geometry, conversion) for each in image.annotations]
        objects = [item for item in found if item is not None]
        conversion.images += 1
        conversion.objects += len(objects)
        yield {
            "images": [os.path.relpath(image.path, out_folder)],
            "width": size[0],
            "height": size[1],
            "objects": objects,
            **({"classes": classes} if classes else {}),
            "metadata": {"image_id": _as_json(image.image_id)},
        }
    _check_any(conversion)


def _in_px(annotation: Annotation, image: AnnotatedImage, size: Size) -> Annotation:
    if not image.in_shares:
        return annotation
    box = annotation.box
    return replace(
        annotation,
        box=box and (box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]),
        segmentation=[
            [value * size[place % 2] for place, value in enumerate(polygon)]
            for polygon in polygons_of(annotation.segmentation)
        ],
    )


def _object(annotation: Annotation, size: Size, geometry: Geometry, conversion: Conversion) -> dict[str, Any] | None:
    """An annotation in px as an object of an image of `size`, or None when it is left out."""
    if annotation.fault is not None or not annotation.desc:
        reason: LeftOut = annotation.fault or "of categories without a name"
        conversion.leave_out(reason, annotation.name, annotation.detail)
        return None
    box = _box(annotation, size, conversion)
    if box is None:
        return None
    if geometry == "poly":
        parts = polygons_of(annotation.segmentation)
        polygon = clipped(parts[0], size) if len(parts) == 1 and _is_whole(annotation.segmentation) else []
        if polygon and len(set(polygon[0::2])) > 1 and len(set(polygon[1::2])) > 1:
            return {"desc": annotation.desc, "poly": polygon}
        conversion.boxes_for_polygons += 1
    return {"desc": annotation.desc, "bbox_2d": box}


def _box(annotation: Annotation, size: Size, conversion: Conversion) -> list[float] | None:
    """The annotation's box in px, clipped to the image, or None when it is left out."""
    box = annotation.box
    if not has_extent(box):
        around = box_around(annotation.segmentation)
        if around is not None:
            conversion.boxes_of_segmentations += 1
            box = around
    if box is None:
        reason: LeftOut = "with a broken box" if annotation.broken else "without a box or a segmentation"
        conversion.leave_out(reason, annotation.name, f": {annotation.broken}" if annotation.broken else "")
        return None
    inside = clipped(box, size)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        conversion.leave_out("without extent inside the image", annotation.name, f": {_shown(box)}")
        return None
    is_clipped = any(abs(a - b) > _CLIPPED_PX for a, b in zip(inside, box, strict=True))
    conversion.clipped += inside != [round(value, 2) for value in box]
    conversion.smells.add(*size, box, clipped=is_clipped)
    return inside


def _is_whole(segmentation: Any) -> bool:
    """Whether a segmentation is one polygon: none of its parts was left out as broken."""
    return isinstance(segmentation, list) and (len(segmentation) == 1 or not isinstance(segmentation[0], list))


def _size_of(image: AnnotatedImage, conversion: Conversion) -> Size | None:
    """The size as the file has it, or as it is written where that must not be decided here; None where nothing says it.

    A file of another size has been turned or resized when the annotated size is its own turned or of the same shape:
    then the boxes are of another picture, the record is written as it was annotated, and its check refuses it.
    """
    written = image.size
    try:
        found = image_size(image.path)
    except (OSError, ValueError, BadImage) as error:
        if written is None:
            conversion.lost.append(f"{image.name}: nothing says its size, and its file cannot: {error}")
        return written
    if written is None:
        conversion.sizes_of_files += not image.in_shares
    elif written != found:
        if written == found[::-1] or _have_one_shape(written, found):
            return written
        conversion.other_sizes += 1
        sizes = f"{found[0]}x{found[1]} px, annotated as {written[0]}x{written[1]}"
        conversion.first_other_size = conversion.first_other_size or f"{image.name} is {sizes}"
    return found


def _have_one_shape(one: Size, other: Size) -> bool:
    """Whether one is the other resized, to within a pixel."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _check_any(conversion: Conversion) -> None:
    """Raise DataError when there is nothing to train on that was meant to be."""
    if not conversion.images:
        first = f"; the first: {conversion.lost[0]}" if conversion.lost else ""
        raise DataError(f"no image can be converted, {len(conversion.lost)} could not{first}")
    if conversion.objects or conversion.annotations == conversion.left_out["crowds"]:
        return
    reasons = conversion.left_out.items()
    told = "; ".join(f"{count} {reason}, {conversion.examples[reason]}" for reason, count in reasons if count)
    listed = ", ".join(conversion.first_images)
    raise DataError(f"none of {conversion.annotations} annotations is an object: {told} (images listed: {listed}, …)")


def _as_json(value: Any) -> Any:
    """An id that every reader of JSON keeps: a whole number beyond those that floats hold goes as a text."""
    return str(value) if isinstance(value, int) and abs(value) > EXACT_JSON_INT else value


def _shown(box: Box) -> str:
    return "box " + ", ".join(f"{value:g}" for value in box)

"""Shapes of annotations: boxes as they are written, and boxes around segmentations, which are as COCO has them."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in px."""


def box_of(bbox: Any) -> Box | None:
    """The corners of [x, y, width, height], whichever way it was dragged; None for what is no four numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    values = [_number(value) for value in bbox]
    if None in values:
        return None
    x, y, width, height = (value for value in values if value is not None)
    return min(x, x + width), min(y, y + height), max(x, x + width), max(y, y + height)


def box_between(x1: Any, y1: Any, x2: Any, y2: Any) -> Box | None:
    """The box between two opposite corners, whichever they are; None for what is no four numbers."""
    xs, ys = [[number for value in pair if (number := _number(value)) is not None] for pair in ((x1, x2), (y1, y2))]
    return (min(xs), min(ys), max(xs), max(ys)) if len(xs) == len(ys) == 2 else None


def polygons_of(segmentation: Any) -> list[list[float]]:
    """The polygons of a segmentation, each x, y, x, y, …; none for a run-length mask, and for what is broken."""
    if not isinstance(segmentation, list):
        return []
    parts = segmentation if all(isinstance(part, list) for part in segmentation) else [segmentation]
    polygons = []
    for part in parts:
        values = [_number(value) for value in part]
        if len(values) >= 6 and len(values) % 2 == 0 and None not in values:
            polygons.append([value for value in values if value is not None])
    return polygons


def box_around(segmentation: Any) -> Box | None:
    """The box around all parts of a segmentation, polygons or a run-length mask; None where there is none."""
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation)
    points = [value for polygon in polygons_of(segmentation) for value in polygon]
    if not points:
        return None
    xs, ys = points[0::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def has_extent(box: Box | None) -> bool:
    return box is not None and box[2] > box[0] and box[3] > box[1]


def clipped(values: Sequence[float], size: tuple[int, int]) -> list[float]:
    """x, y, x, y, … moved into an image of `size` px, to a hundredth of a pixel."""
    return [round(min(max(value, 0), size[place % 2]), 2) for place, value in enumerate(values)]


def _number(value: Any) -> float | None:
    """A finite number, also one that is written as a text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def _box_of_mask(mask: dict[str, Any]) -> Box | None:
    """The box of a run-length mask: runs of 0 and 1 in turn, down the columns of an image of `size` [height, width]."""
    counts, size = mask.get("counts"), mask.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        return None
    runs = counts if isinstance(counts, list) else _runs_of_text(counts) if isinstance(counts, str) else None
    if not runs or not all(isinstance(run, int) and run >= 0 for run in runs):
        return None
    height = size[0]
    ends = list(accumulate(runs))
    ones = [(start, end) for start, end, run in zip(ends[::2], ends[1::2], runs[1::2], strict=False) if run]
    if not ones or ends[-1] > size[0] * size[1]:
        return None
    columns = [place // height for start, end in ones for place in (start, end - 1)]
    rows: list[int] = []
    for start, end in ones:
        if start // height != (end - 1) // height:  # over the end of a column
            rows += [0, height - 1]
        else:
            rows += [start % height, (end - 1) % height]
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def _runs_of_text(text: str) -> list[int] | None:
    """The runs of COCO's compressed text: five bits a character, a sixth says that more follow, signed differences.

    From the fourth on a number is the difference to the run two before it (cocoapi, common/maskApi.c).
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs if shift == 0 else None

"""What is no broken rule and hardly ever meant: boxes that look as if their numbers meant something else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

_ENOUGH = 4
"""Boxes from which on a share of them says anything."""
_MANY_CLIPPED = 0.2
_MOST = 0.5
_LARGEST_BIN = 999

FIRST_LINES = 2000


def smells_of(path: Path) -> list[str]:
    """What the first lines of a JSONL file in px look like; lines that cannot be read are passed over."""
    smells = Smells()
    with path.open("rb") as lines:
        for line in islice(lines, FIRST_LINES):
            try:
                record = orjson.loads(line)
                smells.add_objects(record["width"], record["height"], record["objects"])
            except (ValueError, KeyError, TypeError):
                continue
    return list(smells.warnings())


@dataclass
class Smells:
    """Counts of boxes; `add` each, then ask for `warnings`."""

    boxes: int = 0
    clipped: int = 0
    under_a_pixel: int = 0
    on_large_images: int = 0
    like_bins: int = 0

    def add(self, width: int, height: int, values: Sequence[float], *, clipped: bool = False) -> None:
        """Take a shape in px, x, y, x, y, …, of an image of this size; `clipped` when more than a pixel was cut off."""
        self.boxes += 1
        self.clipped += clipped
        self.under_a_pixel += max(values) <= 1
        if max(width, height) > _LARGEST_BIN + 1:
            self.on_large_images += 1
            self.like_bins += max(values) <= _LARGEST_BIN and all(float(value).is_integer() for value in values)

    def add_objects(self, width: int, height: int, objects: Any) -> None:
        """Take the objects of a line as they are parsed; what is no shape in numbers is passed over."""
        for entry in objects if isinstance(objects, list) else ():
            values = (entry.get("bbox_2d") or entry.get("poly")) if isinstance(entry, dict) else None
            if isinstance(values, list) and values and all(type(value) in (int, float) for value in values):
                self.add(width, height, values)

    def warnings(self) -> Iterator[str]:
        """What the boxes look like, with counts; nothing for those that look as they should."""
        if self.boxes >= _ENOUGH and self.clipped > _MANY_CLIPPED * self.boxes:
            yield (
                f"{self.clipped} of {self.boxes} boxes reach out of their image and are clipped; if their numbers are "
                "x1, y1, x2, y2 and not x, y, width, height, convert them first"
            )
        if self.under_a_pixel > _MOST * self.boxes:
            yield (
                f"{self.under_a_pixel} of {self.boxes} boxes lie within one pixel; if their numbers run from 0 to 1, "
                "multiply them by width and height first"
            )
        if self.on_large_images >= _ENOUGH and self.like_bins == self.on_large_images:
            yield (
                f"all {self.like_bins} boxes of images over 1000 px are whole numbers up to 999; if they are "
                "thousandths of the image, set custom.coordinate_space: norm1000 (--coordinate-space norm1000)"
            )

"""What one reading of a file of boxes in px cannot do without: a line parsed once, each rule of docs/data.md once.

Written as one loop, for speed: no names of what is broken, nothing kept, no image opened.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import orjson

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NUMBERS = {int, float}


@dataclass
class Counts:
    """Lines that were read, boxes without extent in bins, and values clamped to their image."""

    records: int = 0
    widened: int = 0
    clamped: int = 0


def read(path: Path, special_texts: Collection[str]) -> Counts:
    """Check a file. Raises ValueError for a line that breaks a rule."""
    counts = Counts()
    special = re.compile("|".join(map(re.escape, special_texts)))
    with path.open("rb") as lines:
        for line in lines:
            if line.strip():
                check_line(line, special, counts)
    return counts


def check_line(line: bytes, special: re.Pattern[str], counts: Counts) -> None:
    """Check one line of boxes. Raises ValueError when it breaks a rule."""
    record = orjson.loads(line)
    width, height, images, objects = (record.get(key) for key in ("width", "height", "images", "objects"))
    if type(width) is not int or type(height) is not int or width <= 0 or height <= 0:
        raise ValueError("size")
    if type(images) is not list or len(images) != 1 or type(images[0]) is not str or not images[0]:
        raise ValueError("images")
    if "\0" in images[0] or type(record.get("metadata", {})) is not dict or type(objects) is not list:
        raise ValueError("image, metadata or objects")
    for item in objects:
        desc, box = item.get("desc"), item.get("bbox_2d")
        if item.get("poly") is not None or type(box) is not list or len(box) != 4:
            raise ValueError("geometry")
        if not NUMBERS.issuperset(map(type, box)):
            raise ValueError("values")
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1 or x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1:
            raise ValueError("corners")
        if type(desc) is not str or not desc.strip() or CONTROL.search(desc) or special.search(desc):
            raise ValueError("desc")
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            inside = [min(max(value, 0), size) for value, size in zip(box, (width, height) * 2, strict=True)]
            counts.clamped += sum(value != there for value, there in zip(box, inside, strict=True))
            x1, y1, x2, y2 = inside
        left, right = round(999 * x1 / width), round(999 * x2 / width)
        top, bottom = round(999 * y1 / height), round(999 * y2 / height)
        counts.widened += left == right or top == bottom
    counts.records += 1

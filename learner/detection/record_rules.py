"""The rules of the data contract (docs/data.md): a line of JSON to checked values, coordinates to bins."""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from learner.detection.geometry import bins_of_px, widened
from learner.detection.image_size import UNREADABLE_IMAGE, image_size
from learner.detection.vocabulary import NUM_BINS

Kind = Literal["bbox_2d", "poly"]
KINDS: tuple[Kind, ...] = ("bbox_2d", "poly")
CoordinateSpace = Literal["px", "norm1000"]

TOLERANCE_PX = 1.0
"""Values this far outside the image are clamped, others are errors."""
_COORDINATE = re.compile(r"<\|coord_(0|[1-9][0-9]{0,2})\|>")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class BrokenRule(Exception):
    """A broken rule on its way to the place that knows the line. `object_index` counts from 0, None = the record."""

    def __init__(self, reason: str, object_index: int | None = None) -> None:
        self.reason = reason
        self.object_index = object_index


@dataclass
class Changes:
    """How many boxes were widened to have an extent, and how many values were clamped to the image."""

    widened: int = 0
    clamped: int = 0


class CheckedObject(NamedTuple):
    """An object that breaks no rule. `bins` is flat, each 0..999."""

    desc: str
    kind: Kind
    bins: tuple[int, ...]


class CheckedRecord(NamedTuple):
    """A line that breaks no rule. `image` is its path as written, `width` and `height` are px."""

    image: str
    width: int
    height: int
    objects: list[CheckedObject]
    metadata: dict[str, Any] | None


@dataclass(frozen=True)
class Rules:
    """What the lines of a file are held to.

    `special_texts` are a tokenizer's special tokens, which no desc may hold. `check_images` opens each image's header.
    """

    coordinate_space: CoordinateSpace = "px"
    special_texts: frozenset[str] = field(default=frozenset(), repr=False)
    check_images: bool = True

    def check(self, line: bytes, folder: Path, changes: Changes) -> CheckedRecord:
        """Check a line of a file in `folder`; what had to be changed is counted in `changes`. Raises BrokenRule."""
        raw = _json_object(line)
        width, height = _size(raw, "width"), _size(raw, "height")
        image = _image(raw)
        if self.check_images:
            _check_image((folder / image).resolve(), width, height)
        metadata = raw.get("metadata")
        if not (metadata is None or isinstance(metadata, dict)):
            raise BrokenRule(f"metadata must be an object, got {_shown(metadata)}")
        return CheckedRecord(image, width, height, self._objects(raw, width, height, changes), metadata)

    def _objects(self, raw: dict[str, Any], width: int, height: int, changes: Changes) -> list[CheckedObject]:
        entries = raw.get("objects")
        if not isinstance(entries, list):
            raise BrokenRule(f"objects must be a list, got {_shown(entries)}")
        objects: list[CheckedObject] = []
        for index, entry in enumerate(entries):
            try:
                objects.append(self._object(entry, width, height, changes))
            except BrokenRule as broken:
                raise BrokenRule(broken.reason, index) from None
        return objects

    def _object(self, entry: Any, width: int, height: int, changes: Changes) -> CheckedObject:
        if not isinstance(entry, dict):
            raise BrokenRule(f"an object must be a JSON object, got {_shown(entry)}")
        kind = _kind(entry)
        bins = self._bins(kind, entry[kind], width, height, changes)
        return CheckedObject(self._desc(entry), kind, bins)

    def _desc(self, entry: dict[str, Any]) -> str:
        desc = entry.get("desc")
        if not isinstance(desc, str) or not desc.strip():
            raise BrokenRule(f"desc must be a non-blank string, got {_shown(desc)}")
        if found := _CONTROL.search(desc):
            raise BrokenRule(f"desc {desc!r} has the control character {found.group()!r}")
        if self.special_texts and (found := _any_of(self.special_texts).search(desc)):
            raise BrokenRule(f"desc {desc!r} has the text of the special token {found.group()}")
        return desc

    def _bins(self, kind: Kind, values: Any, width: int, height: int, changes: Changes) -> tuple[int, ...]:
        if not isinstance(values, list):
            raise BrokenRule(f"{kind} must be a list, got {_shown(values)}")
        if kind == "bbox_2d" and len(values) != 4:
            raise BrokenRule(f"wrong arity: bbox_2d needs 4 values, got {len(values)}")
        if kind == "poly" and (len(values) < 6 or len(values) % 2):
            raise BrokenRule(f"wrong arity: poly needs an even number of values ≥ 6, got {len(values)}")
        numbers, are_bins = self._numbers(kind, values)
        if kind == "bbox_2d":
            for low, high, axis in ((numbers[0], numbers[2], "x"), (numbers[1], numbers[3], "y")):
                if high <= low:
                    raise BrokenRule(f"bbox_2d {values}: {axis}2 ≤ {axis}1 ({high} ≤ {low})")
        if are_bins:
            return tuple(int(number) for number in numbers)
        return _quantised(kind, numbers, width, height, changes)

    def _numbers(self, kind: Kind, values: list[Any]) -> tuple[list[float], bool]:
        """The values as numbers, and whether these are bins already."""
        if all(isinstance(value, str) for value in values):
            found = [_COORDINATE.fullmatch(value) for value in values]
            if None in found:
                raise BrokenRule(f"{kind} {_shown(values)}: not a coordinate token <|coord_0|> … <|coord_999|>")
            return [int(match.group(1)) for match in found if match], True
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            raise BrokenRule(f"{kind} {_shown(values)}: values are all numbers or all coordinate tokens")
        if self.coordinate_space == "norm1000":
            if not all(isinstance(value, int) and 0 <= value < NUM_BINS for value in values):
                raise BrokenRule(f"{kind} {values}: norm1000 takes whole numbers 0..999")
            return values, True
        return values, False


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BrokenRule(f"bad UTF-8: byte {line[error.start]:#04x} at byte {error.start}") from None
    except orjson.JSONDecodeError as error:
        raise BrokenRule(f"bad JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(value, dict):
        raise BrokenRule(f"bad JSON: the line is {_shown(value)}, not an object")
    return value


def _size(raw: dict[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise BrokenRule(f"{key} must be a whole number of px > 0, got {_shown(value)}")
    return value


def _image(raw: dict[str, Any]) -> str:
    images = raw.get("images")
    if not (isinstance(images, list) and len(images) == 1 and isinstance(images[0], str) and images[0]):
        raise BrokenRule(f"images must be a list of exactly one path, got {_shown(images)}")
    if "\0" in images[0]:
        raise BrokenRule(f"images: no path holds a zero byte, got {_shown(images[0])}")
    return images[0]


def _check_image(image: Path, width: int, height: int) -> None:
    """Compare a record's size with the image's own, as it is seen (EXIF orientation applied)."""
    try:
        size = image_size(image)
    except FileNotFoundError:
        raise BrokenRule(f"missing image file {image}") from None
    except UNREADABLE_IMAGE as error:
        raise BrokenRule(f"unreadable image {image}: {error}") from None
    if size != (width, height):
        raise BrokenRule(f"image {image} is {size[0]}x{size[1]} px, but the record says {width}x{height}")


def _kind(entry: dict[str, Any]) -> Kind:
    kinds = [kind for kind in KINDS if entry.get(kind) is not None]
    if len(kinds) == 2:
        raise BrokenRule("both geometries: an object has bbox_2d or poly, not both")
    if not kinds:
        raise BrokenRule(f"unknown geometry: needs bbox_2d or poly, has the keys {sorted(entry)}")
    return kinds[0]


def _quantised(kind: Kind, numbers: list[float], width: int, height: int, changes: Changes) -> tuple[int, ...]:
    inside = [
        _inside(kind, value, *(("y", height) if place % 2 else ("x", width)), changes)
        for place, value in enumerate(numbers)
    ]
    bins = bins_of_px(inside, width, height)
    if kind == "poly" or (bins[0] < bins[2] and bins[1] < bins[3]):
        return bins
    changes.widened += 1
    return widened(bins)


def _inside(kind: Kind, value: float, axis: str, size: int, changes: Changes) -> float:
    """A pixel value, clamped to the image when it is at most 1 px outside."""
    if 0 <= value <= size:
        return value
    if not -TOLERANCE_PX <= value <= size + TOLERANCE_PX:
        raise BrokenRule(f"{kind}: {axis} = {value} is outside the image (0..{size} px) by more than 1 px")
    changes.clamped += 1
    return min(max(value, 0), size)


@lru_cache(maxsize=8)
def _any_of(texts: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def _shown(value: Any) -> str:
    """A value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"

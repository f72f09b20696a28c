"""The rules of the data contract (docs/data.md): a line of JSON to checked values, coordinates to bins."""

import os
import re
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from learner.detection.geometry import MAX_BIN, bins_of_px, bounding_box, widened
from learner.detection.plain_boxes import CONTROL, NUMBERS, descs_of_plain_boxes
from learner.detection.vocabulary import NUM_BINS, coordinate_text
from shared.images import BadImage, check_aspect_ratio, image_size

Kind = Literal["bbox_2d", "poly"]
KINDS: tuple[Kind, ...] = ("bbox_2d", "poly")
CoordinateSpace = Literal["px", "norm1000"]
Polygons = Literal["error", "as_bbox", "keep"]

TOLERANCE_PX = 1.0
"""Values this far outside the image are clamped, others are errors."""
_ADDRESS = re.compile(r"data:|file:|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How a text begins that is no path of a file: an address, or the image itself."""
_CONTROL_IN_PROMPTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""The control characters but for tab and line feed."""
_BIN_OF_TEXT = {coordinate_text(bin): bin for bin in range(NUM_BINS)}
COORDINATE_TEXTS = frozenset(_BIN_OF_TEXT)
"""All coordinate tokens; no desc may hold one."""
CLASSES = "{classes}"
"""What a record's classes stand for in `custom.user_prompt`."""
NO_CLASSES = (
    "custom.user_prompt has {classes} and the record has none; give each record its `classes` (`boxloop data from "
    "--classes` does), or take {classes} out of the prompt"
)


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


CheckedObject = tuple[str, Kind, tuple[int, ...]]
"""desc, kind and bins (flat, each 0..999) of an object that breaks no rule."""


class OwnPrompt(NamedTuple):
    """What a record itself says of its prompt: all of it, or the classes that fill `custom.user_prompt`; never both."""

    prompt: str | None = None
    classes: tuple[str, ...] = ()


NO_OWN_PROMPT = OwnPrompt()


class CheckedRecord(NamedTuple):
    """A line that breaks no rule. `image` is its path as written, `width` and `height` are px."""

    image: str
    width: int
    height: int
    objects: list[CheckedObject]
    metadata: dict[str, Any] | None
    own_prompt: OwnPrompt


class RecordSize(NamedTuple):
    """How much a good line holds: px of its image, the descs of its objects, and how many coordinates they have."""

    width: int
    height: int
    descs: list[str]
    num_coordinates: int
    own_prompt: OwnPrompt


class _Frame(NamedTuple):
    """All of a line but its objects, and the line as parsed. `image` is its path as written."""

    raw: dict[str, Any]
    image: str
    width: int
    height: int
    own_prompt: OwnPrompt


@dataclass(frozen=True)
class Rules:
    """What the lines of a file are held to.

    `special_texts` are a tokenizer's special tokens, which no desc may hold. `check_images` opens each image's header.
    `polygons`: "error" refuses them, "as_bbox" takes their bounding boxes, "keep" leaves them as they are.
    Without `reads_objects` a line needs none, and those that it has are not looked at.
    `needs_classes` refuses records without classes, unless they have a prompt of their own.
    """

    coordinate_space: CoordinateSpace = "px"
    special_texts: frozenset[str] = field(default=frozenset(), repr=False)
    check_images: bool = True
    polygons: Polygons = "keep"
    reads_objects: bool = True
    needs_classes: bool = False

    def check(self, line: bytes, folder: Path, changes: Changes) -> CheckedRecord:
        """Check a line of a file in `folder`; what had to be changed is counted in `changes`. Raises BrokenRule."""
        raw, image, width, height, own_prompt = self._frame(line, folder)
        objects = self._objects(raw, width, height, changes)
        return CheckedRecord(image, width, height, objects, raw.get("metadata"), own_prompt)

    def measure(self, line: bytes, folder: Path, changes: Changes) -> RecordSize:
        """`check` a line for its size alone, which is faster."""
        raw, _, width, height, own_prompt = self._frame(line, folder)
        objects = raw.get("objects")
        if self.coordinate_space == "px" and isinstance(objects, list):
            descs = descs_of_plain_boxes(objects, width, height, _any_of(self.special_texts))
            if descs is not None:
                return RecordSize(width, height, descs, 4 * len(descs), own_prompt)
        checked = self._objects(raw, width, height, changes)
        num_coordinates = sum([len(bins) for _, _, bins in checked])
        return RecordSize(width, height, [desc for desc, _, _ in checked], num_coordinates, own_prompt)

    def _frame(self, line: bytes, folder: Path) -> _Frame:
        raw = _json_object(line)
        width, height = _size(raw, "width"), _size(raw, "height")
        image = _image(raw)
        try:
            check_aspect_ratio(width, height)
        except BadImage as error:
            raise BrokenRule(f"image {_shown(image)}: {error}") from None
        if self.check_images:
            _check_image(image_path(folder, image), width, height)
        metadata = raw.get("metadata")
        if not (metadata is None or isinstance(metadata, dict)):
            raise BrokenRule(f"metadata must be an object, got {_shown(metadata)}")
        return _Frame(raw, image, width, height, self._own_prompt(raw))

    def _own_prompt(self, raw: dict[str, Any]) -> OwnPrompt:
        prompt, classes = raw.get("prompt"), raw.get("classes")
        if prompt is None and classes is None:
            if self.needs_classes:
                raise BrokenRule(NO_CLASSES)
            return NO_OWN_PROMPT
        if classes is None:
            text = self._words("prompt", prompt, control=_CONTROL_IN_PROMPTS)
            if CLASSES in text:
                raise BrokenRule("prompt has {classes}, which is filled in custom.user_prompt alone; write the names")
            return OwnPrompt(text)
        if prompt is not None:
            raise BrokenRule("both prompt and classes: a prompt of its own takes the place of one with classes")
        if not isinstance(classes, list) or not classes:
            raise BrokenRule(f"classes must be a list of one name or more, got {_shown(classes)}")
        return OwnPrompt(classes=tuple([self._words(f"classes[{place}]", name) for place, name in enumerate(classes)]))

    def _words(self, what: str, words: Any, control: re.Pattern[str] = CONTROL) -> str:
        """`words` if they can stand in an answer or a prompt."""
        if not isinstance(words, str) or not words.strip():
            raise BrokenRule(f"{what} must be a non-blank string, got {_shown(words)}")
        if found := control.search(words):
            raise BrokenRule(f"{what} {_shown(words)} has the control character {found.group()!r}")
        if found := _any_of(self.special_texts).search(words):
            raise BrokenRule(f"{what} {_shown(words)} has the text of the special token {found.group()}")
        return words

    def _objects(self, raw: dict[str, Any], width: int, height: int, changes: Changes) -> list[CheckedObject]:
        entries = raw.get("objects") if self.reads_objects else []
        if not isinstance(entries, list):
            raise BrokenRule(f"objects must be a list, got {_shown(entries)}")
        objects: list[CheckedObject] = []
        for index, entry in enumerate(entries):
            try:
                objects.append(self._object(entry, width, height, changes))
            except BrokenRule as broken:
                raise BrokenRule(broken.reason, index) from None
        return self._without_polygons(objects, changes)

    def _without_polygons(self, objects: list[CheckedObject], changes: Changes) -> list[CheckedObject]:
        kinds = [kind for _, kind, _ in objects]
        if self.polygons == "keep" or "poly" not in kinds:
            return objects
        if self.polygons == "error":
            reason = "poly cannot be learned yet; set custom.poly_as_bbox: true to learn its bounding box"
            raise BrokenRule(reason, kinds.index("poly"))
        return [(desc, "bbox_2d", box_around(bins, changes)) for desc, _, bins in objects]

    def _object(self, entry: Any, width: int, height: int, changes: Changes) -> CheckedObject:
        if not isinstance(entry, dict):
            raise BrokenRule(f"an object must be a JSON object, got {_shown(entry)}")
        box, polygon = entry.get("bbox_2d"), entry.get("poly")
        if box is not None and polygon is not None:
            raise BrokenRule("both geometries: an object has bbox_2d or poly, not both")
        kind: Kind
        if box is not None:
            kind, bins = "bbox_2d", self._box(box, width, height, changes)
        elif polygon is not None:
            kind, bins = "poly", self._polygon(polygon, width, height, changes)
        else:
            raise BrokenRule(f"unknown geometry: needs bbox_2d or poly, has the keys {sorted(entry)}")
        return self._words("desc", entry.get("desc")), kind, bins

    def _box(self, values: Any, width: int, height: int, changes: Changes) -> tuple[int, ...]:
        if not isinstance(values, list):
            raise BrokenRule(f"bbox_2d must be a list, got {_shown(values)}")
        if len(values) != 4:
            raise BrokenRule(f"wrong arity: bbox_2d needs 4 values, got {len(values)}")
        in_px = self._are_in_px(values)
        x1, y1, x2, y2 = values if in_px else self._given_bins("bbox_2d", values)
        if x2 <= x1:
            raise BrokenRule(f"bbox_2d {values}: x2 ≤ x1 ({x2} ≤ {x1})")
        if y2 <= y1:
            raise BrokenRule(f"bbox_2d {values}: y2 ≤ y1 ({y2} ≤ {y1})")
        if not in_px:
            return x1, y1, x2, y2
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            x1, y1, x2, y2 = _inside("bbox_2d", values, width, height, changes)
        box = (
            # `bin_of_px` of each, written out: what lies inside needs no clamping.
            round(MAX_BIN * x1 / width),
            round(MAX_BIN * y1 / height),
            round(MAX_BIN * x2 / width),
            round(MAX_BIN * y2 / height),
        )
        if box[0] < box[2] and box[1] < box[3]:
            return box
        changes.widened += 1
        return widened(box)

    def _polygon(self, values: Any, width: int, height: int, changes: Changes) -> tuple[int, ...]:
        if not isinstance(values, list):
            raise BrokenRule(f"poly must be a list, got {_shown(values)}")
        if len(values) < 6 or len(values) % 2:
            raise BrokenRule(f"wrong arity: poly needs an even number of values ≥ 6, got {len(values)}")
        if not self._are_in_px(values):
            return self._given_bins("poly", values)
        return bins_of_px(_inside("poly", values, width, height, changes), width, height)

    def _are_in_px(self, values: list[Any]) -> bool:
        return self.coordinate_space == "px" and set(map(type, values)) <= NUMBERS

    def _given_bins(self, kind: Kind, values: list[Any]) -> tuple[int, ...]:
        """The bins that values are, or name, that are not in px."""
        types = set(map(type, values))
        if types == {str}:
            bins = tuple(_BIN_OF_TEXT.get(value, -1) for value in values)
            if -1 in bins:
                raise BrokenRule(f"{kind} {_shown(values)}: not a coordinate token <|coord_0|> … <|coord_999|>")
            return bins
        if not types <= NUMBERS:
            raise BrokenRule(f"{kind} {_shown(values)}: values are all numbers or all coordinate tokens")
        if types != {int} or min(values) < 0 or max(values) >= NUM_BINS:
            raise BrokenRule(f"{kind} {values}: norm1000 takes whole numbers 0..999")
        return tuple(values)


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
    if _ADDRESS.match(images[0]):
        raise BrokenRule(f"images takes the path of a local file, got {_shown(images[0])}; save the image to a file")
    return images[0]


def image_path(folder: Path, image: str) -> Path:
    """The file that a record of a JSONL file in `folder` names; links are followed, and one in a circle stays."""
    return Path(os.path.realpath(folder / image))


def _check_image(image: Path, width: int, height: int) -> None:
    """Compare a record's size with the image's own, as it is seen (EXIF orientation applied)."""
    try:
        if not stat.S_ISREG(image.stat().st_mode):
            raise BrokenRule(f"unreadable image {image}: it is a folder or a device, and no file")
        size = image_size(image)
    except FileNotFoundError:
        raise BrokenRule(f"missing image file {image}") from None
    except (OSError, BadImage) as error:
        raise BrokenRule(f"unreadable image {image}: {error}") from None
    if size != (width, height):
        raise BrokenRule(f"image {image} is {size[0]}x{size[1]} px, but the record says {width}x{height}")


def _inside(kind: Kind, values: list[float], width: int, height: int, changes: Changes) -> list[float]:
    """Pixel values x, y, x, y, …, those clamped to the image that are at most 1 px outside."""
    inside = []
    for place, value in enumerate(values):
        axis, size = ("y", height) if place % 2 else ("x", width)
        if not -TOLERANCE_PX <= value <= size + TOLERANCE_PX:
            raise BrokenRule(f"{kind}: {axis} = {value} is outside the image (0..{size} px) by more than 1 px")
        changes.clamped += not 0 <= value <= size
        inside.append(min(max(value, 0), size))
    return inside


def box_around(bins: tuple[int, ...], changes: Changes) -> tuple[int, ...]:
    """The bounding box of a box or polygon; one without extent is widened, and counted."""
    around = bounding_box(bins)
    box = widened(around)
    changes.widened += box != around
    return box


@lru_cache(maxsize=8)
def _any_of(texts: frozenset[str]) -> re.Pattern[str]:
    """Finds the longest of these texts; nothing when there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _shown(value: Any) -> str:
    """A value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"

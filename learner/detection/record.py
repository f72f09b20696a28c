"""Records: what a JSONL line says about an image, checked and quantised (docs/data.md)."""

import logging
import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson

from learner.detection.geometry import bins_of_px, bounding_box, widened
from learner.detection.image_size import UNREADABLE_IMAGE, image_size
from learner.detection.vocabulary import NUM_BINS
from shared.errors import DataError

logger = logging.getLogger(__name__)

Kind = Literal["bbox_2d", "poly"]
KINDS: tuple[Kind, ...] = ("bbox_2d", "poly")
CoordinateSpace = Literal["px", "norm1000"]

TOLERANCE_PX = 1.0
"""Values this far outside the image are clamped, others are errors."""
_COORDINATE = re.compile(r"<\|coord_(0|[1-9][0-9]{0,2})\|>")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class GroundTruthObject:
    """An annotated object. `bins` is flat: (x1, y1, x2, y2) of a box, or x, y, x, y, … of a polygon, each 0..999."""

    desc: str
    kind: Kind
    bins: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """One line of a JSONL file. `images` are resolved paths, `width` and `height` are px, EXIF orientation applied."""

    record_id: str
    images: tuple[str, ...]
    width: int
    height: int
    objects: tuple[GroundTruthObject, ...]
    metadata: Mapping[str, Any] | None = None


class RecordError(DataError):
    """A line that breaks the data contract. `line` counts from 1, `object_index` from 0 (None = the record itself)."""

    def __init__(self, path: str | Path, line: int, object_index: int | None, reason: str) -> None:
        where = "" if object_index is None else f" object {object_index}:"
        super().__init__(f"{path}:{line}:{where} {reason}")
        self.path = str(path)
        self.line = line
        self.object_index = object_index
        self.reason = reason


@dataclass
class ReadReport:
    """What reading had to leave out or change; filled by `read_records` as it goes."""

    records: int = 0
    skipped: list[RecordError] = field(default_factory=list)
    widened: int = 0
    clamped: int = 0


class _Broken(Exception):
    """A broken rule on its way to the place that knows the line."""

    def __init__(self, reason: str, object_index: int | None = None) -> None:
        self.reason = reason
        self.object_index = object_index


def read_records(
    path: str | Path,
    *,
    coordinate_space: CoordinateSpace = "px",
    on_bad_record: Literal["error", "skip"] = "error",
    special_texts: Collection[str] = (),
    check_images: bool = True,
    report: ReadReport | None = None,
) -> Iterator[Record]:
    """Read a JSONL file lazily. Blank lines are passed over; line numbers count them.

    `special_texts` are a tokenizer's special tokens (`CoordinateVocabulary.special_texts`), which no desc may hold.
    `check_images` opens each image's header. With `on_bad_record="skip"` a bad record is logged and listed in `report`.

    Raises RecordError for the first bad record, and OSError when the file cannot be read.
    """
    report = ReadReport() if report is None else report
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = read_record(
                    line,
                    path,
                    number,
                    coordinate_space=coordinate_space,
                    special_texts=special_texts,
                    check_images=check_images,
                    report=report,
                )
            except RecordError as error:
                if on_bad_record == "error":
                    raise
                logger.warning("skipped %s", error)
                report.skipped.append(error)
                continue
            report.records += 1
            yield record


def read_record(
    line: bytes,
    path: str | Path,
    number: int,
    *,
    coordinate_space: CoordinateSpace = "px",
    special_texts: Collection[str] = (),
    check_images: bool = True,
    report: ReadReport | None = None,
) -> Record:
    """Read one line of `path`, the `number`-th (from 1). Arguments and errors as for `read_records`."""
    try:
        return _record_of(
            _json_object(line),
            Path(path),
            number,
            coordinate_space,
            frozenset(special_texts),
            check_images,
            ReadReport() if report is None else report,
        )
    except _Broken as broken:
        raise RecordError(path, number, broken.object_index, broken.reason) from None


def as_boxes(record: Record, report: ReadReport | None = None) -> Record:
    """The record with every polygon replaced by its bounding box; one without extent is widened, and counted."""
    report = ReadReport() if report is None else report
    return replace(record, objects=tuple(_as_box(item, report) for item in record.objects))


def ordered(
    objects: Sequence[GroundTruthObject], ordering: Literal["sorted", "random"] = "sorted", seed: int | str = 0
) -> tuple[GroundTruthObject, ...]:
    """Objects in the order they are written in.

    "sorted" is by (top y, then left x), ties as given; "random" is a permutation that depends on `seed` alone.
    """
    if ordering == "random":
        return tuple(random.Random(seed).sample(objects, len(objects)))
    return tuple(sorted(objects, key=lambda item: bounding_box(item.bins)[1::-1]))


# --- one line ---------------------------------------------------------------------------------------------------------


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _Broken(f"bad UTF-8: byte {line[error.start]:#04x} at byte {error.start}") from None
    except orjson.JSONDecodeError as error:
        raise _Broken(f"bad JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(value, dict):
        raise _Broken(f"bad JSON: the line is {_shown(value)}, not an object")
    return value


def _record_of(
    raw: dict[str, Any],
    path: Path,
    number: int,
    coordinate_space: CoordinateSpace,
    special_texts: frozenset[str],
    check_images: bool,
    report: ReadReport,
) -> Record:
    width, height = _size(raw, "width"), _size(raw, "height")
    image = _image(raw, path.parent)
    if check_images:
        _check_image(image, width, height)
    metadata = raw.get("metadata")
    if not (metadata is None or isinstance(metadata, dict)):
        raise _Broken(f"metadata must be an object, got {_shown(metadata)}")
    return Record(
        record_id=f"{path.stem}:{number}",
        images=(str(image),),
        width=width,
        height=height,
        objects=_objects(raw, _Reader(width, height, coordinate_space, special_texts, report)),
        metadata=metadata,
    )


def _size(raw: dict[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise _Broken(f"{key} must be a whole number of px > 0, got {_shown(value)}")
    return value


def _image(raw: dict[str, Any], folder: Path) -> Path:
    images = raw.get("images")
    if not (isinstance(images, list) and len(images) == 1 and isinstance(images[0], str) and images[0]):
        raise _Broken(f"images must be a list of exactly one path, got {_shown(images)}")
    if "\0" in images[0]:
        raise _Broken(f"images: no path holds a zero byte, got {_shown(images[0])}")
    return (folder / images[0]).resolve()


def _check_image(image: Path, width: int, height: int) -> None:
    """Compare a record's size with the image's own, as it is seen (EXIF orientation applied)."""
    try:
        size = image_size(image)
    except FileNotFoundError:
        raise _Broken(f"missing image file {image}") from None
    except UNREADABLE_IMAGE as error:
        raise _Broken(f"unreadable image {image}: {error}") from None
    if size != (width, height):
        raise _Broken(f"image {image} is {size[0]}x{size[1]} px, but the record says {width}x{height}")


# --- objects ----------------------------------------------------------------------------------------------------------


def _objects(raw: dict[str, Any], reader: "_Reader") -> tuple[GroundTruthObject, ...]:
    entries = raw.get("objects")
    if not isinstance(entries, list):
        raise _Broken(f"objects must be a list, got {_shown(entries)}")
    objects = []
    for index, entry in enumerate(entries):
        try:
            objects.append(reader.read(entry))
        except _Broken as broken:
            raise _Broken(broken.reason, index) from None
    return tuple(objects)


@dataclass(frozen=True)
class _Reader:
    """Reads the objects of one record."""

    width: int
    height: int
    coordinate_space: CoordinateSpace
    special_texts: frozenset[str]
    report: ReadReport

    def read(self, entry: Any) -> GroundTruthObject:
        if not isinstance(entry, dict):
            raise _Broken(f"an object must be a JSON object, got {_shown(entry)}")
        kind = self._kind(entry)
        bins = self._bins(kind, entry[kind])
        return GroundTruthObject(self._desc(entry), kind, bins)

    def _kind(self, entry: dict[str, Any]) -> Kind:
        kinds = [kind for kind in KINDS if entry.get(kind) is not None]
        if len(kinds) == 2:
            raise _Broken("both geometries: an object has bbox_2d or poly, not both")
        if not kinds:
            raise _Broken(f"unknown geometry: needs bbox_2d or poly, has the keys {sorted(entry)}")
        return kinds[0]

    def _desc(self, entry: dict[str, Any]) -> str:
        desc = entry.get("desc")
        if not isinstance(desc, str) or not desc.strip():
            raise _Broken(f"desc must be a non-blank string, got {_shown(desc)}")
        if found := _CONTROL.search(desc):
            raise _Broken(f"desc {desc!r} has the control character {found.group()!r}")
        if self.special_texts and (found := _any_of(self.special_texts).search(desc)):
            raise _Broken(f"desc {desc!r} has the text of the special token {found.group()}")
        return desc

    def _bins(self, kind: Kind, values: Any) -> tuple[int, ...]:
        if not isinstance(values, list):
            raise _Broken(f"{kind} must be a list, got {_shown(values)}")
        if kind == "bbox_2d" and len(values) != 4:
            raise _Broken(f"wrong arity: bbox_2d needs 4 values, got {len(values)}")
        if kind == "poly" and (len(values) < 6 or len(values) % 2):
            raise _Broken(f"wrong arity: poly needs an even number of values ≥ 6, got {len(values)}")
        numbers, are_bins = self._numbers(kind, values)
        if kind == "bbox_2d":
            for low, high, axis in ((numbers[0], numbers[2], "x"), (numbers[1], numbers[3], "y")):
                if high <= low:
                    raise _Broken(f"bbox_2d {values}: {axis}2 ≤ {axis}1 ({high} ≤ {low})")
        if are_bins:
            return tuple(int(number) for number in numbers)
        return self._quantised(kind, numbers)

    def _numbers(self, kind: Kind, values: list[Any]) -> tuple[list[float], bool]:
        """The values as numbers, and whether these are bins already."""
        if all(isinstance(value, str) for value in values):
            found = [_COORDINATE.fullmatch(value) for value in values]
            if None in found:
                raise _Broken(f"{kind} {_shown(values)}: not a coordinate token <|coord_0|> … <|coord_999|>")
            return [int(match.group(1)) for match in found if match], True
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            raise _Broken(f"{kind} {_shown(values)}: values are all numbers or all coordinate tokens")
        if self.coordinate_space == "norm1000":
            if not all(isinstance(value, int) and 0 <= value < NUM_BINS for value in values):
                raise _Broken(f"{kind} {values}: norm1000 takes whole numbers 0..999")
            return values, True
        return values, False

    def _inside(self, kind: Kind, value: float, axis: str) -> float:
        """A pixel value, clamped to the image when it is at most 1 px outside."""
        size = self.width if axis == "x" else self.height
        if 0 <= value <= size:
            return value
        if not -TOLERANCE_PX <= value <= size + TOLERANCE_PX:
            raise _Broken(f"{kind}: {axis} = {value} is outside the image (0..{size} px) by more than 1 px")
        self.report.clamped += 1
        return min(max(value, 0), size)

    def _quantised(self, kind: Kind, numbers: list[float]) -> tuple[int, ...]:
        inside = [self._inside(kind, value, "y" if place % 2 else "x") for place, value in enumerate(numbers)]
        bins = bins_of_px(inside, self.width, self.height)
        if kind == "poly" or (bins[0] < bins[2] and bins[1] < bins[3]):
            return bins
        self.report.widened += 1
        return widened(bins)


def _as_box(item: GroundTruthObject, report: ReadReport) -> GroundTruthObject:
    if item.kind == "bbox_2d":
        return item
    around = bounding_box(item.bins)
    box = widened(around)
    report.widened += box != around
    return replace(item, kind="bbox_2d", bins=box)


@lru_cache(maxsize=8)
def _any_of(texts: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def _shown(value: Any) -> str:
    """A value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"

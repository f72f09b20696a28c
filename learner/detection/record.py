"""Records: what a JSONL line says about an image, checked and quantised (docs/data.md)."""

import logging
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from learner.detection.geometry import bounding_box, widened
from learner.detection.record_rules import BrokenRule, Changes, CoordinateSpace, Kind, Rules
from shared.errors import DataError

logger = logging.getLogger(__name__)


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
class ReadCounts(Changes):
    """What reading took, left out and changed; filled by `read_records` as it goes."""

    records: int = 0
    skipped: list[RecordError] = field(default_factory=list)


def read_records(
    path: str | Path,
    *,
    coordinate_space: CoordinateSpace = "px",
    on_bad_record: Literal["error", "skip"] = "error",
    special_texts: Collection[str] = (),
    check_images: bool = True,
    counts: ReadCounts | None = None,
) -> Iterator[Record]:
    """Read a JSONL file lazily. Blank lines are passed over; line numbers count them.

    `special_texts` are a tokenizer's special tokens (`CoordinateVocabulary.special_texts`), which no desc may hold.
    `check_images` opens each image's header. With `on_bad_record="skip"` a bad record is logged and listed in `counts`.

    Raises RecordError for the first bad record, and OSError when the file cannot be read.
    """
    counts = ReadCounts() if counts is None else counts
    rules = Rules(coordinate_space, frozenset(special_texts), check_images)
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = read_record(line, path, number, rules, counts)
            except RecordError as error:
                if on_bad_record == "error":
                    raise
                logger.warning("skipped %s", error)
                counts.skipped.append(error)
                continue
            counts.records += 1
            yield record


def read_record(line: bytes, path: str | Path, number: int, rules: Rules, changes: Changes | None = None) -> Record:
    """Read one line of `path`, the `number`-th (from 1). Raises RecordError when it breaks one of the rules."""
    folder, changes = Path(path).parent, Changes() if changes is None else changes
    try:
        checked = rules.check(line, folder, changes)
    except BrokenRule as broken:
        raise RecordError(path, number, broken.object_index, broken.reason) from None
    return Record(
        record_id=f"{Path(path).stem}:{number}",
        images=(str((folder / checked.image).resolve()),),
        width=checked.width,
        height=checked.height,
        objects=tuple(GroundTruthObject(*item) for item in checked.objects),
        metadata=checked.metadata,
    )


def as_boxes(record: Record, changes: Changes | None = None) -> Record:
    """The record with every polygon replaced by its bounding box; one without extent is widened, and counted."""
    changes = Changes() if changes is None else changes
    return replace(record, objects=tuple(_as_box(item, changes) for item in record.objects))


def ordered(
    objects: Sequence[GroundTruthObject], ordering: Literal["sorted", "random"] = "sorted", seed: int | str = 0
) -> tuple[GroundTruthObject, ...]:
    """Objects in the order they are written in.

    "sorted" is by (top y, then left x), ties as given; "random" is a permutation that depends on `seed` alone.
    """
    if ordering == "random":
        return tuple(random.Random(seed).sample(objects, len(objects)))
    return tuple(sorted(objects, key=lambda item: bounding_box(item.bins)[1::-1]))


def _as_box(item: GroundTruthObject, changes: Changes) -> GroundTruthObject:
    if item.kind == "bbox_2d":
        return item
    around = bounding_box(item.bins)
    box = widened(around)
    changes.widened += box != around
    return replace(item, kind="bbox_2d", bins=box)

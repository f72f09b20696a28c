"""Records: what a JSONL line says about an image, checked and quantised (docs/data.md)."""

import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from learner.detection.geometry import bounding_box
from learner.detection.lines import begin_of_text
from learner.detection.record_rules import (
    BrokenRule,
    Changes,
    CheckedRecord,
    CoordinateSpace,
    Kind,
    Rules,
    image_path,
)
from shared.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_OF_STEM = 120
"""Bytes of a file's name in a record's, which goes over the wire and into names of pictures."""


@dataclass(frozen=True)
class GroundTruthObject:
    """An annotated object. `bins` is flat: (x1, y1, x2, y2) of a box, or x, y, x, y, … of a polygon, each 0..999."""

    desc: str
    kind: Kind
    bins: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """One line of a JSONL file. `images` are resolved paths, `width` and `height` are px, EXIF orientation applied.

    `fault` says why the line could not be read again; such a record has no objects, and whoever encodes it loses it.
    `prompt` takes the place of the configured user prompt, `classes` fill its {classes}; a record has one or neither.
    """

    record_id: str
    images: tuple[str, ...]
    width: int
    height: int
    objects: tuple[GroundTruthObject, ...]
    metadata: Mapping[str, Any] | None = None
    fault: str = ""
    prompt: str | None = None
    classes: tuple[str, ...] = ()


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


class GoodLine(NamedTuple, Generic[T]):
    """A line that breaks no rule: its number (from 1), first byte and length in bytes, and what was made of it."""

    number: int
    offset: int
    num_bytes: int
    content: T


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

    Raises RecordError for the first bad record, DataError for a file that is not made of JSON lines, and OSError for
    one that cannot be read.
    """
    rules = Rules(coordinate_space, frozenset(special_texts), check_images)
    for line in good_lines(path, rules.check, on_bad_record, ReadCounts() if counts is None else counts):
        yield build_record(line.content, path, line.number)


def good_lines(
    path: str | Path,
    check: Callable[[bytes, Path, Changes], T],
    on_bad_record: Literal["error", "skip"],
    counts: ReadCounts,
) -> Iterator[GoodLine[T]]:
    """What `check`, of `Rules`, makes of the lines of a file. Errors as for `read_records`."""
    for checked in checked_lines(path, check, counts):
        if isinstance(checked, GoodLine):
            counts.records += 1
            yield checked
        elif on_bad_record == "error":
            raise checked
        else:
            logger.warning("skipped %s", checked)
            counts.skipped.append(checked)


def checked_lines(
    path: str | Path, check: Callable[[bytes, Path, Changes], T], changes: Changes
) -> Iterator[GoodLine[T] | RecordError]:
    """Every line of a file, or the rule of `check` that it breaks; blank ones are passed over.

    Raises DataError for a file that is not made of JSON lines.
    """
    folder = Path(path).parent
    with open(path, "rb") as lines:
        offset = begin_of_text(lines, path)
        for number, line in enumerate(lines, 1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                content = check(line, folder, changes)
            except BrokenRule as broken:
                yield RecordError(path, number, broken.object_index, broken.reason)
            else:
                yield GoodLine(number, start, len(line), content)


def read_record(line: bytes, path: str | Path, number: int, rules: Rules) -> Record:
    """Read one line of `path`, the `number`-th (from 1). Raises RecordError when it breaks one of the rules."""
    try:
        content = rules.check(line, Path(path).parent, Changes())
    except BrokenRule as broken:
        raise RecordError(path, number, broken.object_index, broken.reason) from None
    return build_record(content, path, number)


def build_record(content: CheckedRecord, path: str | Path, number: int) -> Record:
    """The record of a good line."""
    path = Path(path)
    return Record(
        record_id=record_id_of(path, number),
        images=(str(image_path(path.parent, content.image)),),
        width=content.width,
        height=content.height,
        objects=tuple(GroundTruthObject(*item) for item in content.objects),
        metadata=content.metadata,
        prompt=content.own_prompt.prompt,
        classes=content.own_prompt.classes,
    )


def record_id_of(path: Path, number: int) -> str:
    """The name of the record on a line, counted from 1: train:17."""
    stem = path.stem.encode("utf-8", "replace")[:MOST_OF_STEM].decode("utf-8", "ignore")
    return f"{stem}:{number}"


def ordered(
    objects: Sequence[GroundTruthObject], ordering: Literal["sorted", "random"] = "sorted", seed: int | str = 0
) -> tuple[GroundTruthObject, ...]:
    """Objects in the order they are written in.

    "sorted" is by (top y, then left x), ties as given; "random" is a permutation that depends on `seed` alone.
    """
    if ordering == "random":
        return tuple(random.Random(seed).sample(objects, len(objects)))
    return tuple(sorted(objects, key=lambda item: bounding_box(item.bins)[1::-1]))

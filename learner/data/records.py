"""Records of a JSONL file in training order: validated once, then read one by one as they are needed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from learner.detection.record import (
    ReadCounts,
    Record,
    RecordError,
    as_boxes,
    ordered,
    read_record,
    read_records,
)
from learner.detection.record_rules import CoordinateSpace, Rules
from shared.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How lines become records.

    `polygons`: "error" refuses them, "as_bbox" takes their bounding boxes, "keep" leaves them as they are.
    `special_texts` are a tokenizer's special tokens, which no desc may hold. `check_images` opens each image's header.
    """

    coordinate_space: CoordinateSpace = "px"
    on_bad_record: Literal["error", "skip"] = "error"
    polygons: Literal["error", "as_bbox", "keep"] = "error"
    object_ordering: Literal["sorted", "random"] = "sorted"
    special_texts: frozenset[str] = field(default=frozenset(), repr=False)
    check_images: bool = True


@dataclass(frozen=True)
class Line:
    """Where a good record stands: number of its line (from 1), first byte, and length in bytes."""

    number: int
    offset: int
    num_bytes: int


class RecordSource:
    """The records of a file, by a cursor that counts records over all epochs.

    Each epoch is a permutation that depends on (seed, epoch) alone, so any cursor can be read at any time and a run
    resumes at any record. `seed` None keeps the order of the file. Not thread-safe.
    """

    def __init__(self, path: Path, lines: Sequence[Line], reading: Reading, seed: int | None) -> None:
        self.path = path
        self._lines = lines
        self._reading = reading
        self._seed = seed
        self._permutation = lru_cache(maxsize=2)(self._permuted)

    @classmethod
    def opened(
        cls, path: Path, reading: Reading, *, seed: int | None, limit: int | None = None
    ) -> tuple["RecordSource", ReadCounts]:
        """Validate the file, or its first `limit` good records, and say what was skipped or changed.

        Raises RecordError for a bad record (unless `on_bad_record` is "skip"), and DataError when none is left or the
        file cannot be read.
        """
        counts = ReadCounts()
        records = read_records(
            path,
            coordinate_space=reading.coordinate_space,
            on_bad_record=reading.on_bad_record,
            special_texts=reading.special_texts,
            check_images=reading.check_images,
            counts=counts,
        )
        if reading.polygons == "as_bbox":
            records = (as_boxes(record, counts) for record in records)
        usable = (line_number(record) for record in records if _has_usable_kinds(record, path, reading, counts))
        try:
            source = cls(path, _lines_at(path, list(islice(usable, limit))), reading, seed)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; name an existing JSONL file") from error
        source._refuse_empty("every record was skipped" if counts.skipped else "the file has no record")
        return source, counts

    @property
    def num_records(self) -> int:
        return len(self._lines)

    def record_at(self, cursor: int) -> Record:
        """The record at `cursor` ≥ 0, counted over all epochs."""
        epoch, place = divmod(cursor, self.num_records)
        return self._read(self._lines[self._permutation(epoch)[place]], epoch)

    def in_file_order(self) -> list[Record]:
        """Every record once, as the file has them."""
        return [self._read(line, epoch=0) for line in self._lines]

    def filtered(self, keep: Callable[[Record], bool]) -> "RecordSource":
        """The same source without the records that `keep` turns down. Raises DataError when none is left."""
        lines = [line for line in self._lines if keep(self._read(line, epoch=0))]
        source = RecordSource(self.path, lines, self._reading, self._seed)
        source._refuse_empty(f"none of its {self.num_records} records is fit for training")
        return source

    def _permuted(self, epoch: int) -> Sequence[int]:
        if self._seed is None:
            return range(self.num_records)
        order: list[int] = np.random.default_rng((self._seed, epoch)).permutation(self.num_records).tolist()
        return order

    def _read(self, line: Line, epoch: int) -> Record:
        with self.path.open("rb") as file:
            file.seek(line.offset)
            text = file.read(line.num_bytes)
        record = read_record(
            text,
            self.path,
            line.number,
            Rules(self._reading.coordinate_space, self._reading.special_texts, check_images=False),
        )
        if self._reading.polygons == "as_bbox":
            record = as_boxes(record)
        order_seed = f"{self._seed}/{epoch}/{record.record_id}"
        return replace(record, objects=ordered(record.objects, self._reading.object_ordering, order_seed))

    def _refuse_empty(self, reason: str) -> None:
        if not self._lines:
            raise DataError(f"{self.path}: no record to train on or evaluate: {reason}")


def line_number(record: Record) -> int:
    """The line that a record stands in, counted from 1."""
    return int(record.record_id.rpartition(":")[2])


def _has_usable_kinds(record: Record, path: Path, reading: Reading, counts: ReadCounts) -> bool:
    """Whether all geometries may be learned. Raises RecordError for a polygon where bad records are errors."""
    polygons = [index for index, item in enumerate(record.objects) if item.kind == "poly"]
    if not polygons or reading.polygons != "error":
        return True
    error = RecordError(
        path,
        line_number(record),
        polygons[0],
        "poly cannot be learned yet; set custom.poly_as_bbox: true to learn its bounding box",
    )
    if reading.on_bad_record == "error":
        raise error
    logger.warning("skipped %s", error)
    counts.records -= 1
    counts.skipped.append(error)
    return False


def _lines_at(path: Path, numbers: Sequence[int]) -> list[Line]:
    """Find the lines with these ascending numbers."""
    wanted = iter(numbers)
    number, lines, offset = next(wanted, None), [], 0
    with path.open("rb") as file:
        for at, text in enumerate(file, 1):
            if at == number:
                lines.append(Line(at, offset, len(text)))
                number = next(wanted, None)
            offset += len(text)
    return lines

"""Records of a JSONL file: checked and indexed in one pass at the start, then read as they are needed."""

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from learner.data.kept_file import KeptFile
from learner.detection.record import (
    GoodLine,
    ReadCounts,
    Record,
    RecordError,
    build_record,
    good_lines,
    ordered,
    read_record,
    record_id_of,
)
from learner.detection.record_rules import NO_OWN_PROMPT, Changes, OwnPrompt, Polygons, Rules
from learner.detection.serialize import most_answer_tokens
from shared.errors import DataError

LOG = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Reading(Rules):
    """How lines become records: the rules, what becomes of a line that breaks one, and the order of objects."""

    polygons: Polygons = "error"
    on_bad_record: Literal["error", "skip"] = "error"
    object_ordering: Literal["sorted", "random"] = "sorted"


class Line(NamedTuple):
    """Where a good record stands, and how large it is.

    Number of its line (from 1), first byte and length in bytes; px of its image; a bound for the tokens of its answer;
    a number that lines share which ask alike, 0 = as the configuration does.

        Line(number=3, offset=1742, num_bytes=868, width=640, height=480, most_answer_tokens=921, asking=0)
    """

    number: int
    offset: int
    num_bytes: int
    width: int
    height: int
    most_answer_tokens: int
    asking: int


INDEX = np.dtype([(name, np.uint64) for name in Line._fields])
"""A `Line` in 56 bytes: what is kept of each record."""
ROWS_AT_A_TIME = 4096
"""How many of them are `Line`s at a time, each of some 300 bytes."""


class RecordSource:
    """The records of a file, by a cursor that counts records over all epochs.

    Each epoch is a permutation that depends on (seed, epoch) alone, so any cursor can be read at any time and a run
    resumes at any record. `seed` None keeps the order of the file. Not thread-safe.
    """

    def __init__(self, file: KeptFile, index: NDArray[np.void], reading: Reading, seed: int | None) -> None:
        """`index` [R] has a row of `INDEX` a record, in the order of the file."""
        self.path = file.path
        self._file = file
        self._index = index
        self._reading = replace(reading, check_images=False)  # they were looked at when the file was indexed
        self._seed = seed
        self._permutation = lru_cache(maxsize=2)(self._permuted)

    @classmethod
    def opened(
        cls, path: Path, reading: Reading, *, seed: int | None, limit: int | None = None
    ) -> tuple["RecordSource", ReadCounts]:
        """Check the file, or its first `limit` good records, and say what was skipped or changed.

        Raises RecordError for a bad record (unless `on_bad_record` is "skip"), and DataError when none is left or the
        file cannot be read.
        """
        counts, rows = ReadCounts(), array("Q")
        file = _kept(path)
        for number, offset, num_bytes, size in _usable_lines(path, reading, reading.measure, limit, counts):
            most_tokens = most_answer_tokens(size.descs, size.num_coordinates)
            rows.extend((number, offset, num_bytes, size.width, size.height, most_tokens, _asking(size.own_prompt)))
        return cls(file, np.frombuffer(rows, INDEX), reading, seed), counts

    @property
    def num_records(self) -> int:
        return len(self._index)

    def lines(self) -> Iterator[Line]:
        """Every record's place and size, as the file has them."""
        for start in range(0, self.num_records, ROWS_AT_A_TIME):
            yield from map(Line._make, self._index[start : start + ROWS_AT_A_TIME].tolist())

    def spaced_lines(self, count: int) -> Iterator[Line]:
        """`count` records, or all of fewer, evenly spaced over the file."""
        places = np.linspace(0, self.num_records - 1, min(count, self.num_records)).round().astype(np.int64)
        yield from map(Line._make, self._index[places].tolist())

    def record_at(self, cursor: int) -> Record:
        """The record at `cursor` ≥ 0, counted over all epochs.

        With `on_bad_record` skip one that was spoilt since the start comes with its `fault`; else raises RecordError.
        """
        epoch, place = divmod(cursor, self.num_records)
        line = Line._make(self._index[self._permutation(epoch)[place]].item())
        if news := self._file.news():
            LOG.warning(news)
        try:
            return self.read(line, epoch)
        except RecordError as error:
            if self._reading.on_bad_record == "error":
                raise
            name = record_id_of(self.path, line.number)
            return Record(name, (), line.width, line.height, (), fault=str(error))

    def read(self, line: Line, epoch: int = 0) -> Record:
        """Read one of `lines` again, as it is learned in an epoch. Raises RecordError when it is no longer there."""
        text = self._file.read(line.offset, line.num_bytes)
        record = read_record(text, self.path, line.number, self._reading)
        return _arranged(record, self._reading, self._seed, epoch)

    def filtered(self, keep: Callable[[Line], bool]) -> "RecordSource":
        """The same source without the records that `keep` turns down. Raises DataError when none is left."""
        kept = np.fromiter(map(keep, self.lines()), np.bool_, self.num_records)
        if not kept.any():
            raise _no_record(self.path, f"none of its {self.num_records} records is fit for training")
        return RecordSource(self._file, self._index[kept], self._reading, self._seed)

    def _permuted(self, epoch: int) -> Sequence[int]:
        if self._seed is None:
            return range(self.num_records)
        order: list[int] = np.random.default_rng((self._seed, epoch)).permutation(self.num_records).tolist()
        return order


def read_all(path: Path, reading: Reading, limit: int | None = None) -> tuple[Record, ...]:
    """Read a file, or its first `limit` good records, into memory. Errors as of `RecordSource.opened`."""
    return tuple(
        _arranged(build_record(line.content, path, line.number), reading)
        for line in _usable_lines(path, reading, reading.check, limit, ReadCounts())
    )


def _usable_lines(
    path: Path, reading: Reading, check: Callable[[bytes, Path, Changes], T], limit: int | None, counts: ReadCounts
) -> Iterator[GoodLine[T]]:
    """The first `limit` good lines, at least one."""
    try:
        yield from islice(good_lines(path, check, reading.on_bad_record, counts), limit)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not counts.records:
        raise _no_record(path, "every record was skipped" if counts.skipped else "the file has no record")


def _asking(own: OwnPrompt) -> int:
    """A number for what a record asks, good as long as this process: 64 bits that only equal prompts share."""
    return 0 if own is NO_OWN_PROMPT else hash(own) % 2**64 or 1


def _kept(path: Path) -> KeptFile:
    try:
        return KeptFile(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}; name an existing JSONL file")


def _no_record(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: no record to train on or evaluate: {reason}")


def _arranged(record: Record, reading: Reading, seed: int | None = None, epoch: int = 0) -> Record:
    """The record with its objects in the order in which an epoch has them."""
    order_seed = f"{seed}/{epoch}/{record.record_id}"
    return replace(record, objects=ordered(record.objects, reading.object_ordering, order_seed))

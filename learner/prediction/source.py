"""The pictures to predict for: one file, a folder with all that is in it, or the lines of a JSONL file. Read lazily."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from learner.data.image_files import SUFFIXES
from learner.detection.record import GoodLine, ReadCounts, Record, RecordError, build_record, checked_lines
from learner.detection.record_rules import CheckedRecord, Rules
from learner.evaluation.coco_results import has_own_ids, line_number, own_image_id
from shared.errors import DataError
from shared.images import BadImage, holds_image, image_size

JSONL_SUFFIXES = (".jsonl", ".json", ".ndjson")
PICTURE_SUFFIXES = SUFFIXES | {".gif", ".heic", ".heif", ".jfif", ".jpe"}
"""A file of such a name is meant to be a picture, so one that cannot be read has failed; others are looked into."""

TellFailure = Callable[[str], None]
"""Takes one line about a picture that cannot be used."""


class Source(Protocol):
    """Pictures in a fixed order."""

    @property
    def root(self) -> Path:
        """The folder that file names are relative to."""

    def count(self) -> int:
        """How many pictures there are, readable or not."""

    def records(self, fail: TellFailure) -> Iterator[Record]:
        """A record without objects for each picture, its id in `metadata.image_id`; `fail` is told the others."""


def open_source(path: Path, special_texts: frozenset[str], written: Path) -> Source:
    """What `path` holds; `written` is where predictions go, which are no pictures to predict for.

    Raises DataError for a path that is not there.
    """
    if path.is_dir():
        return Folder(path, written)
    if not path.is_file():
        raise DataError(f"{path} is neither a picture, a folder nor a JSONL file; correct the path")
    return Lines(path, special_texts) if path.suffix.lower() in JSONL_SUFFIXES else OnePicture(path)


@dataclass(frozen=True)
class OnePicture:
    """A single file, whatever its name."""

    path: Path

    @property
    def root(self) -> Path:
        return self.path.parent

    def count(self) -> int:
        return 1

    def records(self, fail: TellFailure) -> Iterator[Record]:
        yield from _records([self.path], fail)


class Folder:
    """All files below a folder that Pillow reads, sorted, those of a folder before those of its subfolders.

    Ids count from 1 in this order. `num_others` are the files that the last count passed over: hidden ones, and those
    that are no pictures.
    """

    def __init__(self, root: Path, written: Path) -> None:
        self.root = root
        self.num_others = 0
        self._written = written.resolve()

    def count(self) -> int:
        counts = Counter(map(is_picture, self._files()))
        self.num_others = counts[False]
        return counts[True]

    def records(self, fail: TellFailure) -> Iterator[Record]:
        yield from _records(filter(is_picture, self._files()), fail)

    def _files(self) -> Iterator[Path]:
        for folder, subfolders, files in os.walk(self.root):
            subfolders[:] = sorted(
                name
                for name in subfolders
                if not name.startswith(".") and Path(folder, name).resolve() != self._written
            )
            yield from (Path(folder, name) for name in sorted(files))


class Lines:
    """A JSONL file of records (docs/data.md), whose objects are not looked at.

    An image's id is `metadata.image_id` where every record has one of its own, else its line.
    """

    def __init__(self, path: Path, special_texts: frozenset[str]) -> None:
        self._path = path
        self._rules = Rules(special_texts=special_texts, check_images=False, reads_objects=False)

    @property
    def root(self) -> Path:
        return self._path.parent

    def count(self) -> int:
        return sum(1 for _ in self._checked())

    def records(self, fail: TellFailure) -> Iterator[Record]:
        have_own = has_own_ids(map(own_image_id, filter(None, map(self._record, self._checked()))))
        for checked in self._checked():
            record = self._record(checked)
            if record is None:
                fail(str(checked))
                continue
            image_id = own_image_id(record) if have_own else line_number(record)
            yield replace(record, metadata={"image_id": image_id})

    def _checked(self) -> Iterator[GoodLine[CheckedRecord] | RecordError]:
        return checked_lines(self._path, self._rules.check, ReadCounts())

    def _record(self, checked: GoodLine[CheckedRecord] | RecordError) -> Record | None:
        return None if isinstance(checked, RecordError) else build_record(checked.content, self._path, checked.number)


def is_picture(path: Path) -> bool:
    """Whether a file of a folder is a picture, by its name or else by its first bytes."""
    is_pipe = path.exists() and not path.is_file()
    if path.name.startswith(".") or is_pipe:
        return False
    return path.suffix.lower() in PICTURE_SUFFIXES or holds_image(path)


def _records(paths: Iterable[Path], fail: TellFailure) -> Iterator[Record]:
    for image_id, path in enumerate(paths, 1):
        try:
            width, height = image_size(path)
        except (OSError, BadImage) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            fail(f"{path} cannot be read: {reason}")
            continue
        yield Record(f"picture:{image_id}", (str(path),), width, height, (), {"image_id": image_id})

"""Predictions as COCO results: `predictions.json`, and `images.json` with what its ids mean. Written as they come.

    predictions.json  [{"image_id": 17, "category_id": 2, "bbox": [x, y, width, height], "score": 0.93}, …]
    images.json       {"images": [{"id": 17, "file_name": "a.jpg", …}], "categories": [{"id": 2, "name": "cat"}], …}

The second is a COCO data set, so that `COCO("images.json").loadRes("predictions.json")` takes both.
"""

import os
from array import array
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import orjson

from learner.data.text import EXACT_JSON_INT
from learner.detection.geometry import bounding_box, px_of_bins
from learner.detection.matching import Shape
from learner.detection.record import Record
from learner.evaluation.coco_ap import ScoredImage
from shared.whole_file import whole_file

PREDICTIONS_FILE, IMAGES_FILE = "predictions.json", "images.json"
PX_DIGITS, SCORE_DIGITS = 3, 6


class ResultFiles:
    """Both files of one set of images, open as long as the block lasts.

    However the block ends, what has been added is whole and in place. File names are relative to `root`; categories are
    numbered from 1, `descs` first, then others as they come. Nothing is kept of an image, but for its annotations.
    """

    def __init__(self, folder: Path, root: Path, descs: Iterable[str] = ()) -> None:
        """Raises OSError for a folder that cannot be written."""
        self._root = root
        self._categories = {desc: number for number, desc in enumerate(dict.fromkeys(descs), 1)}
        self._annotations: list[dict[str, Any]] = []
        self._stack = ExitStack()
        with ExitStack() as opening:
            self._predictions = _Array(opening.enter_context(whole_file(folder / PREDICTIONS_FILE)))
            self._file = opening.enter_context(whole_file(folder / IMAGES_FILE))
            self._file.write(b'{"info": {"description": "written by Boxloop"},\n"images": ')
            self._images = _Array(self._file)
            self._stack = opening.pop_all()

    def __enter__(self) -> "ResultFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._stack:  # an error in here leaves neither file; one of the block is none of theirs
            self._predictions.end()
            self._images.end()
            categories = [{"id": number, "name": desc} for desc, number in self._categories.items()]
            for key, values in {"categories": categories, "annotations": self._annotations}.items():
                self._file.write(b',\n"%s": ' % key.encode())
                array = _Array(self._file)
                for value in values:
                    array.add(value)
                array.end()
            self._file.write(b"}\n")

    def add(self, image: ScoredImage, image_id: int, **about: object) -> None:
        """Write an image's predictions, and the image; `about` are further keys of its entry in `images.json`."""
        record = image.record
        for prediction, score in zip(image.predictions, image.scores, strict=True):
            shape = shape_of(prediction, record)
            self._predictions.add(
                {**self._ids(image_id, prediction.desc), **shape, "score": round(score, SCORE_DIGITS)}
            )
        entry = {
            "id": image_id,
            "file_name": _utf8(os.path.relpath(record.images[0], self._root)),
            "width": record.width,
            "height": record.height,
            "record_id": record.record_id,
        }
        self._images.add({**entry, **about})

    def annotate(self, record: Record, image_id: int) -> None:
        """Keep a record's own objects for `images.json`."""
        for item in record.objects:
            shape = {"segmentation": [corners_of(item, record)], **shape_of(item, record)}
            area = {"area": area_of(item, record), "iscrowd": 0}
            number = {"id": len(self._annotations) + 1}
            self._annotations.append({**number, **self._ids(image_id, item.desc), **shape, **area})

    def _ids(self, image_id: int, desc: str) -> dict[str, int]:
        category_id = self._categories.setdefault(desc, len(self._categories) + 1)
        return {"image_id": image_id, "category_id": category_id}


class _Array:
    """A JSON array in a file, an entry a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lead = b"[\n"

    def add(self, entry: object) -> None:
        self._file.write(self._lead + orjson.dumps(entry))
        self._lead = b",\n"

    def end(self) -> None:
        self._file.write(b"[]" if self._lead == b"[\n" else b"\n]")


def write_results(images: Sequence[ScoredImage], folder: Path, root: Path) -> None:
    """Write both files of a scored set, with the annotations that it was scored on."""
    descs = (item.desc for image in images for item in image.record.objects)
    with ResultFiles(folder, root, descs) as files:
        for image, image_id in zip(images, image_ids([image.record for image in images]), strict=True):
            files.add(image, image_id)
            files.annotate(image.record, image_id)


def image_ids(records: Sequence[Record]) -> list[int]:
    """The ids of images: `metadata.image_id` where every record has one of its own, else the records' line numbers."""
    own = [own_image_id(record) for record in records]
    return [each for each in own if each is not None] if has_own_ids(own) else [line_number(each) for each in records]


def has_own_ids(ids: Iterable[int | None]) -> bool:
    """Whether every record says an id that no other says; takes 8 bytes for each."""
    kept = array("q")
    for each in ids:
        if each is None:
            return False
        kept.append(each)
    return len(np.unique(np.frombuffer(kept, np.int64))) == len(kept)


def own_image_id(record: Record) -> int | None:
    """The id that a record says its image has, as `boxloop data from-coco` writes it; None without a whole number."""
    found = (record.metadata or {}).get("image_id")
    return found if type(found) is int and 0 <= found < EXACT_JSON_INT else None


def line_number(record: Record) -> int:
    """The line of its file that a record stands on: 17 of "val:17"."""
    return int(record.record_id.rpartition(":")[2])


def shape_of(shape: Shape, record: Record) -> dict[str, Any]:
    """Box (x, y, width, height) in px, and the corners of a polygon."""
    x1, y1, x2, y2 = px_of_bins(bounding_box(shape.bins), record.width, record.height)
    box = {"bbox": [round(value, PX_DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]}
    return box if shape.kind == "bbox_2d" else {**box, "segmentation": [corners_of(shape, record)]}


def corners_of(shape: Shape, record: Record) -> list[float]:
    """x, y, x, y, … in px."""
    bins = shape.bins
    if shape.kind == "bbox_2d":
        x1, y1, x2, y2 = bins
        bins = (x1, y1, x2, y1, x2, y2, x1, y2)
    return [round(value, PX_DIGITS) for value in px_of_bins(bins, record.width, record.height)]


def area_of(shape: Shape, record: Record) -> float:
    """Area in px² by the shoelace formula."""
    corners = corners_of(shape, record)
    xs, ys = corners[0::2], corners[1::2]
    turned = zip(xs, ys, (*xs[1:], xs[0]), (*ys[1:], ys[0]), strict=True)
    return round(abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in turned)) / 2, PX_DIGITS)


def _utf8(name: str) -> str:
    """A file's name as JSON can hold it: bytes that are no UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")

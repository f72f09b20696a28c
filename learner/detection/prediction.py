"""An object that a rollout claims to see, and the reasons why an entry is not one."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from learner.detection.serialize import CLOSE_OBJECT


class DropReason(Enum):
    """Why an entry is no prediction. The first that holds, in this order, is counted by its name."""

    incomplete = "the answer ends inside it"
    bad_json = "it, or what separates it, is not JSON; the scan ends here"
    bad_key = "its key is not object_N with N ≥ 1"
    not_object = "its value is not a JSON object"
    extra_key = "it has a key other than desc and one geometry, or one of them twice"
    missing_key = "it lacks desc or a geometry"
    bad_desc = "desc is not a non-blank string"
    bbox_2d = "boxes were not asked for"
    poly = "polygons were not asked for"
    not_coordinates = "its geometry is not a list of coordinate tokens"
    arity = "a box has not 4 values, or a polygon not an even number ≥ 6"
    degenerate = "a box without width or height"


class Notice(Enum):
    """What is worth counting about a prediction that is kept."""

    reversed = "corners given in another order than (left, top), (right, bottom); they are sorted"
    duplicate_key = "an earlier entry has the same key"


class Place(NamedTuple):
    """Where a prediction stands in its answer. Offsets count characters of marked text (vocabulary.py).

    `start` is the end of the entry before it (0 for the first), so the places of an answer's entries leave no gap.
    An answer that ended with this object's last coordinate token would go on with `closing`, then with `next_index`.
    `num_dropped` entries before it are no predictions.
    """

    start: int = 0
    desc_start: int = 0
    desc_end: int = 0
    end: int = 0
    next_index: int = 1
    closing: str = CLOSE_OBJECT
    num_dropped: int = 0


_NOWHERE = Place()


@dataclass(frozen=True, slots=True)
class Prediction:
    """A valid object of an answer.

    `index` is the N of `object_N`. `bins` is flat: (x1, y1, x2, y2) with x1 < x2 and y1 < y2, or x, y, … of a polygon;
    `positions` are the places of its coordinate tokens in the rollout, ascending, so that those of a reversed box are
    taught x1, y1, x2, y2 in the order in which they are read.
    """

    index: int
    desc: str
    kind: str
    bins: tuple[int, ...]
    positions: tuple[int, ...]
    place: Place = _NOWHERE

"""The usual record, told from others at a glance: boxes in px that reading takes as they are.

Rules that are applied object by object can say which is broken. Where none is, which is nearly always so, the same can
be known of all objects together in a third of the time, since the loops over them are C's.
"""

import re
from itertools import chain
from operator import sub
from typing import Any

from learner.detection.geometry import MAX_BIN

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""The control characters, which no desc may hold."""
NUMBERS = frozenset({int, float})
"""The types of values that are numbers; `bool` is none of them."""
_SAFE_EXTENT = 2
"""In bins: corners that lie more than one apart have different bins, more than two also after errors of rounding."""


def descs_of_plain_boxes(objects: list[Any], width: int, height: int, special: re.Pattern[str]) -> list[str] | None:
    """The descs of objects, as parsed, that are all boxes in px, break no rule and are changed by none.

    None says no more than that it takes a closer look. `special` finds special tokens in a desc.
    """
    if not objects:
        return []
    try:
        boxes = [entry["bbox_2d"] for entry in objects]
        descs = [entry["desc"] for entry in objects]
        values, text = [*chain.from_iterable(boxes)], "".join(descs)
    except (KeyError, TypeError):  # not objects, or not with a box and a desc
        return None
    if True in ["poly" in entry for entry in objects] or {*map(len, boxes)} != {4}:
        return None
    if not NUMBERS.issuperset(map(type, values)):
        return None
    x1, y1, x2, y2 = values[0::4], values[1::4], values[2::4], values[3::4]
    if min(x1) < 0 or min(y1) < 0 or max(x2) > width or max(y2) > height:
        return None
    narrowest, lowest = min(map(sub, x2, x1)), min(map(sub, y2, y1))
    if MAX_BIN * narrowest <= _SAFE_EXTENT * width or MAX_BIN * lowest <= _SAFE_EXTENT * height:
        return None
    if CONTROL.search(text) or special.search(text) or not all(map(str.strip, descs)):
        return None
    return descs

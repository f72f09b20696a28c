"""The only writer of the answer format (docs/data.md)."""

import json
from collections.abc import Iterable, Sequence
from typing import Protocol

import orjson

from learner.detection.vocabulary import coordinate_text


class Describable(Protocol):
    """What can be written: a ground-truth object or a prediction. `bins` is flat: x, y, x, y, …"""

    @property
    def desc(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def bins(self) -> tuple[int, ...]: ...


BETWEEN_COORDINATES = '", "'
CLOSE_OBJECT = '"]}'
CLOSE_ANSWER = "}"
SEPARATOR = ", "


def open_object(index: int, desc: str, kind: str) -> tuple[str, str, str]:
    """An object's text up to its first coordinate, in three parts: before, of and after the desc value.

    `index` is the N of `object_N`, counted from 1.
    """
    value = json.dumps(desc, ensure_ascii=False)[1:-1]
    return f'"object_{index}": {{"desc": "', value, f'", "{kind}": ["'


def closing_with_desc(desc: str) -> str:
    """What closes an object whose geometry was written first."""
    return f'"], "desc": {json.dumps(desc, ensure_ascii=False)}}}'


def object_text(index: int, item: Describable) -> str:
    """One entry of an answer."""
    coordinates = BETWEEN_COORDINATES.join(map(coordinate_text, item.bins))
    return "".join(open_object(index, item.desc, item.kind)) + coordinates + CLOSE_OBJECT


def answer_text(objects: Iterable[Describable] | Sequence[Describable], start_index: int = 1) -> str:
    """Write an answer, in the order given; no objects is `{}`. The stop token is not part of it."""
    entries = (object_text(index, item) for index, item in enumerate(objects, start_index))
    return "{" + SEPARATOR.join(entries) + CLOSE_ANSWER


_OBJECT_BYTES = len("".join(open_object(0, "", "bbox_2d")) + CLOSE_OBJECT + SEPARATOR) - len("0" + BETWEEN_COORDINATES)
"""Bytes of an object without its number, its desc and its coordinates; "bbox_2d" is the longer kind."""


def most_answer_tokens(descs: Sequence[str], num_coordinates: int) -> int:
    """At most how many tokens an answer has, with its stop token, however its text is tokenised.

    A token is a byte or more, a coordinate is one token. `descs` are those of all objects, `num_coordinates` counts the
    coordinates of all of them.
    """
    per_object = _OBJECT_BYTES + len(str(len(descs)))
    num_desc_bytes = len(orjson.dumps("".join(descs))) - len('""')  # escapes what `json.dumps` does, and is faster
    in_geometries = num_coordinates * (1 + len(BETWEEN_COORDINATES))
    return len("{}") + len(descs) * per_object + num_desc_bytes + in_geometries + 1

"""Judges the entries of an answer: a prediction, or dropped with a reason."""

import re

from learner.detection.prediction import DropReason, Notice, Place, Prediction
from learner.detection.scanner import Entry, Field, string_value
from learner.detection.serialize import CLOSE_OBJECT, closing_with_desc
from learner.detection.vocabulary import ANY_COORDINATE, COORDINATE_MARK, NUM_BINS, UNKNOWN

_KEY = re.compile(r"object_([1-9][0-9]{0,3999})")  # int() refuses more than 4300 digits
_GEOMETRY = rf'"[{ANY_COORDINATE}](?:", "[{ANY_COORDINATE}])*+"'
_STRIDE = len('T", "')
_AS_WRITTEN = (
    r'"object_([1-9][0-9]{0,8})": \{"desc": "'
    rf'([^"\\\x00-\x1f{ANY_COORDINATE}{UNKNOWN}]*+)", "(bbox_2d|poly)": \[({_GEOMETRY})\]\}}'
)
FIRST_AS_WRITTEN = re.compile(_AS_WRITTEN)
"""An entry in the answer format's own spacing, for `Entries.add_as_written`."""
NEXT_AS_WRITTEN = re.compile(", " + _AS_WRITTEN)
_MARK = re.compile(f"[{ANY_COORDINATE}]")
_LIST_OF_MARKS = re.compile(
    r"\[[ \t\n\r]*+(?:T(?:,T)*+)?+\]".replace("T", rf'[ \t\n\r]*+"[{ANY_COORDINATE}]"[ \t\n\r]*+')
)
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape it, UTF-8 cannot write it
_BIN_OF_MARK = {chr(COORDINATE_MARK + bin): bin for bin in range(NUM_BINS)}


class Entries:
    """The entries of one answer, added in their order.

    `coordinate_positions` are the places of all coordinate tokens fed so far; entries use them up in order. `dropped`
    and `notices` list the names of `DropReason` and `Notice`.
    """

    def __init__(self, kinds: frozenset[str]) -> None:
        self.coordinate_positions: list[int] = []
        self.predictions: list[Prediction] = []
        self.dropped: list[str] = []
        self.notices: list[str] = []
        self._kinds = kinds
        self._num_coordinates = 0
        self._end = 0
        self._seen: set[int] = set()
        self._highest = 0
        self._is_repeated = False

    @property
    def is_empty(self) -> bool:
        """Whether there was no entry at all, valid or not."""
        return not self.predictions and not self.dropped

    def drop(self, reason: DropReason) -> None:
        self.dropped.append(reason.name)

    def add_as_written(self, match: re.Match[str], offset: int) -> bool:
        """Add a match of `FIRST_AS_WRITTEN` or `NEXT_AS_WRITTEN` in text that begins at `offset` of the answer.

        False, and nothing is added, when its desc is not UTF-8.
        """
        number, desc, kind, geometry = match.groups()
        if not desc.isascii():
            try:
                desc = desc.encode("latin-1").decode("utf-8")
            except UnicodeDecodeError:
                return False
        index = int(number)
        self._see(index)
        marks = geometry[1::_STRIDE]
        first = self._num_coordinates
        self._num_coordinates = first + len(marks)
        end = offset + match.end()
        desc_start, desc_end = match.span(2)
        num_dropped = len(self.dropped)
        place = Place(
            self._end, offset + desc_start, offset + desc_end, end, self._highest + 1, CLOSE_OBJECT, num_dropped
        )
        self._end = end
        self._judge(index, desc, kind, marks, first, place)
        return True

    def add(self, entry: Entry, text: str, offset: int) -> None:
        """Add an entry that the scanner found in `text`, which begins at `offset` of the answer."""
        first = self._num_coordinates
        self._num_coordinates += len(_MARK.findall(text, entry.start, entry.end))
        if key := _KEY.fullmatch(entry.key):
            self._see(int(key.group(1)))
            reason = self._take_apart(int(key.group(1)), entry, text, offset, first)
        else:
            reason = DropReason.bad_key
        if reason is not None:
            self.drop(reason)
        self._end = offset + entry.end

    def _see(self, index: int) -> None:
        self._is_repeated = index in self._seen
        self._seen.add(index)
        if index > self._highest:
            self._highest = index

    def _take_apart(self, index: int, entry: Entry, text: str, offset: int, first: int) -> DropReason | None:
        """Find desc and geometry in an entry; the reason when they are not there."""
        if entry.fields is None:
            return DropReason.not_object
        fields = {string_value(field.key): field for field in entry.fields}
        kinds = [kind for kind in ("bbox_2d", "poly") if kind in fields]
        if len(entry.fields) > len(fields) or fields.keys() - {"desc", *kinds} or len(kinds) == 2:
            return DropReason.extra_key
        if len(fields) < 2:
            return DropReason.missing_key
        desc, geometry = fields["desc"], fields[kinds[0]]
        if text[desc.value_start] != '"':
            return DropReason.bad_desc
        value = string_value(text[desc.value_start : desc.value_end])
        is_listed = _LIST_OF_MARKS.fullmatch(text, geometry.value_start, geometry.value_end)
        marks = _MARK.findall(text, geometry.value_start, geometry.value_end) if is_listed else None
        first += len(_MARK.findall(text, entry.start, geometry.value_start))
        self._judge(index, value, kinds[0], marks, first, self._place(entry, desc, geometry, value, offset))
        return None

    def _place(self, entry: Entry, desc: Field, geometry: Field, value: str, offset: int) -> Place:
        """A geometry that stands before desc is closed with the desc that is then still to come."""
        return Place(
            start=self._end,
            desc_start=offset + desc.value_start + 1,
            desc_end=offset + desc.value_end - 1,
            end=offset + entry.end,
            next_index=self._highest + 1,
            closing=CLOSE_OBJECT if desc.value_start < geometry.value_start else closing_with_desc(value),
            num_dropped=len(self.dropped),
        )

    def _judge(self, index: int, desc: str, kind: str, marks: str | list[str] | None, first: int, place: Place) -> None:
        """Keep an object whose parts are all there, or drop it. `first` counts the coordinate tokens before it."""
        if not desc.strip() or (not desc.isascii() and _HALF_SURROGATE.search(desc)):
            return self.drop(DropReason.bad_desc)
        if kind not in self._kinds:
            return self.drop(DropReason[kind])
        if marks is None:
            return self.drop(DropReason.not_coordinates)
        bins = tuple(map(_BIN_OF_MARK.__getitem__, marks))
        positions = tuple(self.coordinate_positions[first : first + len(bins)])
        if kind == "bbox_2d":
            if len(bins) != 4:
                return self.drop(DropReason.arity)
            x1, y1, x2, y2 = bins
            if x1 == x2 or y1 == y2:
                return self.drop(DropReason.degenerate)
            if x1 > x2 or y1 > y2:
                bins = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
                self.notices.append(Notice.reversed.name)
        elif len(bins) < 6 or len(bins) % 2:
            return self.drop(DropReason.arity)
        if self._is_repeated:
            self.notices.append(Notice.duplicate_key.name)
        self.predictions.append(Prediction(index, desc, kind, bins, positions, place))
        return None

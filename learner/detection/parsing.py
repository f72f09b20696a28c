"""From the ids of a rollout to its objects: strict, without repair, in linear time (docs/data.md gives the rules).

A rollout is turned into marked text (vocabulary.py). Its entries are recognised in one of two ways, which accept the
same: an expression for entries in the answer format's own spacing, and the JSON scanner for everything else.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import compress, count

from learner.detection.entries import FIRST_AS_WRITTEN, NEXT_AS_WRITTEN, Entries
from learner.detection.prediction import DropReason, Notice, Place, Prediction
from learner.detection.scanner import Invalid, Unfinished, scan_entry, skip_space
from learner.detection.vocabulary import IM_END, STOP, CoordinateVocabulary

__all__ = ["DropReason", "Notice", "ParsedRollout", "Place", "Prediction", "RolloutParser", "parse_rollout"]


@dataclass(frozen=True)
class ParsedRollout:
    """What an answer says.

    `prefix_token_ids` are the rollout's ids up to and including the last coordinate token of the last prediction;
    `next_index` is 1 + the highest N of a key `object_N` in it. `dropped` counts entries by the names of `DropReason`,
    `notices` by those of `Notice`. A `malformed` answer is not one JSON object and has no predictions; `truncated` says
    that it was cut off; `empty` that it is a complete `{}`, which is legal.
    """

    predictions: tuple[Prediction, ...] = ()
    prefix_token_ids: tuple[int, ...] = ()
    next_index: int = 1
    dropped: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)
    truncated: bool = False
    malformed: bool = False
    empty: bool = False

    @property
    def invalid(self) -> bool:
        """Whether the answer has neither an object nor the right to have none."""
        return not self.predictions and not self.empty


def parse_rollout(
    token_ids: Sequence[int],
    vocabulary: CoordinateVocabulary,
    finish_reason: str | None = None,
    kinds: Sequence[str] = ("bbox_2d",),
) -> ParsedRollout:
    """Parse the generated ids of an answer (without the prompt; everything from the first stop on is ignored).

    Geometries that are not in `kinds` are dropped. Never raises, whatever the ids.
    """
    parser = RolloutParser(vocabulary, kinds)
    parser.take(token_ids)
    return parser.finish(finish_reason)


class _Phase(Enum):
    """What the parser expects next."""

    OPENING = "the top-level brace"
    FIRST = "the first entry or the closing brace"
    ENTRY = "an entry"
    SEPARATOR = "a comma or the closing brace"
    CLOSED = "white space"
    LOST = "anything: the scan ended with invalid JSON"
    MALFORMED = "anything: this is no answer"


_INSIDE = (_Phase.FIRST, _Phase.ENTRY, _Phase.SEPARATOR)


class RolloutParser:
    """Parses an answer while it is being decoded. Any split of the ids into `feed` calls gives the same result.

    Text waits until there is as much of it as of text that could not be used up, so each character is looked at a
    bounded number of times even when ids come one by one.
    """

    def __init__(self, vocabulary: CoordinateVocabulary, kinds: Sequence[str] = ("bbox_2d",)) -> None:
        self._vocabulary = vocabulary
        self._token_ids: list[int] = []
        self._waiting: list[str] = []
        self._num_waiting = 0
        self._text = ""
        self._offset = 0
        self._ended = False
        self._phase = _Phase.OPENING
        self._entries = Entries(frozenset(kinds))

    def feed(self, token_ids: Iterable[int]) -> None:
        """Take the next generated ids, and parse what can be parsed."""
        self.take(token_ids)
        if self._num_waiting >= len(self._text):
            self._scan(is_last=False)

    def take(self, token_ids: Iterable[int]) -> None:
        """Take the next generated ids, and leave them to a later `feed` or `finish`."""
        if self._ended:
            return
        token_ids = list(token_ids)
        is_coordinate = map(self._vocabulary.is_coordinate_id, token_ids)
        self._entries.coordinate_positions += compress(count(len(self._token_ids)), is_coordinate)
        self._token_ids += token_ids
        text = self._vocabulary.marked_text(token_ids)
        self._waiting.append(text)
        self._num_waiting += len(text)

    def finish(self, finish_reason: str | None = None) -> ParsedRollout:
        """The result, once all ids were fed. `finish_reason` is the server's; "length" means cut off."""
        self._scan(is_last=True)
        truncated = finish_reason == "length" or self._phase in _INSIDE
        if self._phase is _Phase.MALFORMED or self._phase is _Phase.OPENING:
            return ParsedRollout(truncated=truncated, malformed=True)
        entries = self._entries
        last = entries.predictions[-1] if entries.predictions else None
        return ParsedRollout(
            predictions=tuple(entries.predictions),
            prefix_token_ids=tuple(self._token_ids[: last.positions[-1] + 1]) if last else (),
            next_index=last.place.next_index if last else 1,
            dropped=Counter(entries.dropped),
            notices=Counter(entries.notices),
            truncated=truncated,
            empty=self._phase is _Phase.CLOSED and entries.is_empty,
        )

    def _scan(self, is_last: bool) -> None:
        """Use up what has arrived, as far as it can be told what it is."""
        text = "".join((self._text, *self._waiting))
        self._waiting, self._num_waiting = [], 0
        text, held_back = self._until_end(text, is_last)
        used = self._advance(text)
        if is_last and self._phase in (_Phase.FIRST, _Phase.ENTRY) and text[used:].strip():
            self._entries.drop(DropReason.incomplete)
        self._text = text[used:] + held_back
        self._offset += used

    def _until_end(self, text: str, is_last: bool) -> tuple[str, str]:
        """The text before the answer's end, and what may yet turn out to be the beginning of one."""
        if STOP in text or IM_END in text:
            self._ended = True
            return text.partition(STOP)[0].partition(IM_END)[0], ""
        last_angle = text.rfind(IM_END[0], max(0, len(text) - len(IM_END)))
        if is_last or last_angle < 0 or not IM_END.startswith(text[last_angle:]):
            return text, ""
        return text[:last_angle], text[last_angle:]

    def _advance(self, text: str) -> int:
        """Go from phase to phase until the text ends or an entry is unfinished; the number of characters used up."""
        at = 0
        try:
            while self._phase not in (_Phase.LOST, _Phase.MALFORMED):
                if self._phase in _INSIDE:
                    at = self._entries_as_written(text, at)
                at = self._next(text, skip_space(text, at))
        except Unfinished:
            return at
        except Invalid:
            self._phase = _Phase.LOST
            self._entries.drop(DropReason.bad_json)
        return len(text)

    def _entries_as_written(self, text: str, at: int) -> int:
        """Take as many entries as are written in the answer format's own spacing."""
        pattern = NEXT_AS_WRITTEN
        if self._phase is not _Phase.SEPARATOR:
            at, pattern = skip_space(text, at), FIRST_AS_WRITTEN
        while match := pattern.match(text, at):
            if not self._entries.add_as_written(match, self._offset):
                break
            at = match.end()
            self._phase, pattern = _Phase.SEPARATOR, NEXT_AS_WRITTEN
        return at

    def _next(self, text: str, at: int) -> int:
        """Take one brace, comma or entry that begins at `at`. Raises Unfinished or Invalid."""
        character = text[at]
        match self._phase:
            case _Phase.OPENING if character == "{":
                self._phase = _Phase.FIRST
            case _Phase.FIRST | _Phase.SEPARATOR if character == "}":
                self._phase = _Phase.CLOSED
            case _Phase.SEPARATOR if character == ",":
                self._phase = _Phase.ENTRY
            case _Phase.FIRST | _Phase.ENTRY:
                entry = scan_entry(text, at)
                self._entries.add(entry, text, self._offset)
                self._phase = _Phase.SEPARATOR
                return entry.end
            case _Phase.SEPARATOR:
                raise Invalid
            case _:
                self._phase = _Phase.MALFORMED
        return at + 1

"""Writes answers in token ids, noting what is supervised on the way.

The text of an answer is cut at its coordinate tokens. They are added tokens, which a tokenizer cuts out before it
merges anything, so a stretch between two of them has the same ids wherever it stands: each is encoded once.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, compress, pairwise
from typing import cast

from learner.detection.decision import decision_place, ending, stretch_of
from learner.detection.openings import OPEN_ANSWER, Stretch, openings
from learner.detection.prediction import Place
from learner.detection.serialize import BETWEEN_COORDINATES, CLOSE_OBJECT, Describable
from learner.detection.vocabulary import CoordinateVocabulary

_STRUCTURE, _DESC = b"\1", b"\2"
Corners = tuple[int, int, int, int]
Box = tuple[Corners, Corners]


def answer_weight(
    vocabulary: CoordinateVocabulary,
    items: Sequence[Describable],
    desc_weight: float,
    coordinate_weight: float,
    start_index: int = 1,
    lead: str = OPEN_ANSWER,
) -> float:
    """Σ of the cross-entropy weights over all tokens of a whole answer (W_s of docs/numerics.md).

    Or of the rest of one, `items` from `object_<start_index>` on, where `lead` closes what stands before.
    """
    stretches = [
        *openings(vocabulary, items, start_index, lead),
        ending(vocabulary, CLOSE_OBJECT if items else lead),
    ]
    num_coordinates = sum([len(item.bins) for item in items])
    num_desc = sum([stretch.desc_end - stretch.desc_start for stretch in stretches])
    num_structure = sum([len(stretch.token_ids) for stretch in stretches]) - num_desc
    num_structure += len(stretch_of(vocabulary, BETWEEN_COORDINATES).token_ids) * (num_coordinates - len(items))
    return num_structure + desc_weight * num_desc + coordinate_weight * num_coordinates


def num_tokens(
    vocabulary: CoordinateVocabulary, items: Sequence[Describable], start_index: int = 1, lead: str = OPEN_ANSWER
) -> int:
    """Length of an answer, or of the rest of one (see `answer_weight`), its stop token included."""
    return int(answer_weight(vocabulary, items, 1.0, 1.0, start_index, lead))


def structure_of(vocabulary: CoordinateVocabulary, prefix: Sequence[int], matched: Iterable[Place]) -> list[int]:
    """Where in a prefix the structure of its matched objects stands.

    That is every token that lies wholly in these objects, is no coordinate and does not lie wholly in a desc value. One
    that reaches into an object that is not matched is left out: it would teach to go on with that object.
    """
    ends = list(accumulate(vocabulary.num_characters(prefix)))
    parts = bytearray(ends[-1])
    for place in matched:
        parts[place.start : place.end] = _STRUCTURE * len(parts[place.start : place.end])
        parts[place.desc_start : place.desc_end] = _DESC * len(parts[place.desc_start : place.desc_end])
    return [
        place
        for place, (start, end) in enumerate(pairwise([0, *ends]))
        if _STRUCTURE in (part := parts[start:end]) and 0 not in part and not vocabulary.is_coordinate(prefix[place])
    ]


class TargetWriter:
    """A target in the making: ids from the prompt on, and what is supervised in them, by position."""

    def __init__(self, vocabulary: CoordinateVocabulary, token_ids: Iterable[int]) -> None:
        self.token_ids = list(token_ids)
        self.ce_positions: list[int] = []
        self.ce_weights: list[float] = []
        self.boxes: list[Box] = []
        self._vocabulary = vocabulary
        self._between = stretch_of(vocabulary, BETWEEN_COORDINATES)

    def supervise(self, positions: Sequence[int], weight: float) -> None:
        """Put cross-entropy on tokens; a weight of 0 leaves them out."""
        if weight:
            self.ce_positions += positions
            self.ce_weights += [weight] * len(positions)

    def supervise_box(self, positions: tuple[int, ...], bins: tuple[int, ...]) -> None:
        """Pull four coordinate slots towards the bins of a box."""
        self.boxes.append(cast(Box, (positions, bins)))

    def write(self, stretch: Stretch, structure_weight: float, desc_weight: float) -> None:
        """Append a stretch of text."""
        start = len(self.token_ids)
        self.token_ids += stretch.token_ids
        end = len(self.token_ids)
        if stretch.desc_start == stretch.desc_end or structure_weight == desc_weight:
            self.supervise(range(start, end), structure_weight)
            return
        desc_start, desc_end = start + stretch.desc_start, start + stretch.desc_end
        self.supervise(range(start, desc_start), structure_weight)
        self.supervise(range(desc_start, desc_end), desc_weight)
        self.supervise(range(desc_end, end), structure_weight)

    def write_ending(self, lead: str, stop_weight: float) -> None:
        """End the answer, `stop_weight` on the token that decides to. `lead` closes what stands before."""
        start = len(self.token_ids)
        self.write(ending(self._vocabulary, lead), 1.0, 1.0)
        decision = start + decision_place(self._vocabulary, lead) - len(self.token_ids)
        self.ce_weights[decision] = stop_weight
        if not stop_weight:
            del self.ce_positions[decision], self.ce_weights[decision]

    def write_coordinates(self, bins: Sequence[int], structure_weight: float, weight: float) -> tuple[int, ...]:
        """Append coordinate tokens and what stands between them; returns the positions of the tokens."""
        start, between = len(self.token_ids), self._between.token_ids
        first, *others = map(self._vocabulary.coordinate_ids.__getitem__, bins)
        self.token_ids.append(first)
        for token_id in others:
            self.token_ids += between
            self.token_ids.append(token_id)
        positions = range(start, len(self.token_ids))
        weights = ([weight] + [structure_weight] * len(between)) * len(bins)
        self.ce_positions += compress(positions, weights)
        self.ce_weights += compress(weights[: len(positions)], weights)
        return tuple(positions[:: 1 + len(between)])

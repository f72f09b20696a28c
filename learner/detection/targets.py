"""Targets: what a model is taught for one record, from the ground truth or from its own answer.

    ground truth:  prompt │ tail = the whole answer
    rollout:       prompt │ prefix = its own ids, to the last coordinate kept │ tail = the missing objects and the end

The tail is supervised; the prefix only where a matched prediction's coordinates stand (docs/data.md has the table).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from learner.detection.matching import Match
from learner.detection.openings import OPEN_ANSWER, openings
from learner.detection.parsing import ParsedRollout
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import CLOSE_OBJECT, Describable
from learner.detection.target_writer import Box, TargetWriter, answer_weight, ending, num_tokens, structure_of
from learner.detection.vocabulary import CoordinateVocabulary
from shared.errors import DataError


@dataclass(frozen=True)
class TargetWeights:
    """What is supervised how much.

    `desc_ce_weight` is for tokens that lie wholly in a tail's desc value, `coord_ce_weight` for the tail's coordinate
    tokens, `prefix_structure_ce_weight` for the structure of matched objects in the prefix. `prefix_extras="drop"`
    rewrites the prefix with the matched predictions alone. Other tail tokens weigh 1. Weights are ≥ 0.
    """

    desc_ce_weight: float = 1.0
    coord_ce_weight: float = 0.0
    prefix_structure_ce_weight: float = 0.0
    prefix_extras: Literal["keep", "drop"] = "keep"


@dataclass(frozen=True)
class Target:
    """A sequence to be teacher-forced: the prompt (image placeholders expanded), then an answer up to its stop token.

    `ce_positions` (ascending places in `token_ids`, each predicted from the place before it) and `ce_weights` belong
    together, as tuples, so that a target is hashable and compares by value. `boxes` holds ((p1, p2, p3, p4),
    (b1, b2, b3, b4)): the places of a box's coordinate tokens and the bins (x1, y1, x2, y2) they are pulled towards,
    each ground-truth box once. `ce_denominator` is the weight of all supervised tokens of the record's whole
    ground-truth answer. `num_shortened` predictions were cut from the prefix's end to fit the capacity.
    """

    record_id: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    ce_positions: tuple[int, ...]
    ce_weights: tuple[float, ...]
    boxes: tuple[Box, ...]
    ce_denominator: float
    num_shortened: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


DEFAULT_WEIGHTS = TargetWeights()


def ground_truth_target(
    record_id: str,
    prompt_token_ids: Sequence[int],
    objects: Sequence[GroundTruthObject],
    vocabulary: CoordinateVocabulary,
    weights: TargetWeights = DEFAULT_WEIGHTS,
    **changes: Any,
) -> Target:
    """Teach a record's own answer, objects in the order given. `changes` replace fields of `weights` by name."""
    weights = replace(weights, **changes) if changes else weights
    return _Lesson(record_id, tuple(prompt_token_ids), tuple(objects), vocabulary, weights).from_ground_truth()


def rollout_target(
    record_id: str,
    prompt_token_ids: Sequence[int],
    objects: Sequence[GroundTruthObject],
    parsed: ParsedRollout,
    match: Match,
    vocabulary: CoordinateVocabulary,
    capacity: int | None = None,
    weights: TargetWeights = DEFAULT_WEIGHTS,
    **changes: Any,
) -> Target:
    """Teach an answer's own prefix, with every object that it missed appended.

    `match` pairs `parsed.predictions` with `objects`. A target of more than `capacity` tokens loses objects from the
    end of its prefix until it fits. `changes` replace fields of `weights` by name.

    Raises DataError when not even the ground truth's own answer fits the capacity.
    """
    weights = replace(weights, **changes) if changes else weights
    lesson = _Lesson(record_id, tuple(prompt_token_ids), tuple(objects), vocabulary, weights)
    partner = {i: j for i, j, _ in match.pairs}
    candidates = [i for i in range(len(parsed.predictions)) if weights.prefix_extras == "keep" or i in partner]
    target = lesson.from_rollout(parsed, partner, candidates)
    if capacity is None or target.num_tokens <= capacity:
        return target
    for num_kept in range(len(candidates) - 1, -1, -1):
        if lesson.num_tokens(parsed, partner, candidates[:num_kept]) <= capacity:
            target = lesson.from_rollout(parsed, partner, candidates[:num_kept])
            return replace(target, num_shortened=len(candidates) - num_kept)
    raise DataError(
        f"{record_id}: prompt and ground-truth answer have {lesson.from_ground_truth().num_tokens} tokens, but the "
        f"capacity is {capacity}; raise global_max_length or set custom.on_long_target: skip"
    )


@dataclass(frozen=True)
class _Lesson:
    """One record, and how it is to be taught."""

    record_id: str
    prompt: tuple[int, ...]
    objects: tuple[GroundTruthObject, ...]
    vocabulary: CoordinateVocabulary
    weights: TargetWeights

    def from_ground_truth(self) -> Target:
        writer = TargetWriter(self.vocabulary, self.prompt)
        self._write_tail(writer, self.objects, 1, OPEN_ANSWER)
        return self._target(writer)

    def num_tokens(self, parsed: ParsedRollout, partner: dict[int, int], kept: list[int]) -> int:
        """Length of `from_rollout`, without writing it."""
        missing = self._missing(partner, kept)
        if not kept or self.weights.prefix_extras == "drop":
            written: list[Describable] = [*(parsed.predictions[i] for i in kept), *missing]
            return len(self.prompt) + num_tokens(self.vocabulary, written)
        last = parsed.predictions[kept[-1]]
        tail = num_tokens(self.vocabulary, missing, last.place.next_index, last.place.closing)
        return len(self.prompt) + last.positions[-1] + 1 + tail

    def from_rollout(self, parsed: ParsedRollout, partner: dict[int, int], kept: list[int]) -> Target:
        """Keep the predictions `kept` (ascending, with their ground truths in `partner`) and append the others."""
        if not kept:
            return self.from_ground_truth()
        missing = self._missing(partner, kept)
        predictions = [parsed.predictions[i] for i in kept]
        taught = [self.objects[partner[i]] if i in partner else None for i in kept]
        if self.weights.prefix_extras == "drop":
            writer = self._rewritten_prefix(predictions, taught)
            self._write_tail(writer, missing, len(kept) + 1, CLOSE_OBJECT)
        else:
            writer = self._own_prefix(parsed, predictions, taught)
            place = predictions[-1].place
            self._write_tail(writer, missing, place.next_index, place.closing)
        return self._target(writer)

    def _missing(self, partner: dict[int, int], kept: list[int]) -> list[GroundTruthObject]:
        found = {partner[i] for i in kept if i in partner}
        return [item for j, item in enumerate(self.objects) if j not in found]

    def _own_prefix(
        self, parsed: ParsedRollout, predictions: list[Prediction], taught: list[GroundTruthObject | None]
    ) -> TargetWriter:
        """The rollout's ids, untouched, up to the last coordinate of the last of `predictions`."""
        prefix = parsed.prefix_token_ids[: predictions[-1].positions[-1] + 1]
        writer = TargetWriter(self.vocabulary, self.prompt + prefix)
        shift = len(self.prompt)
        if self.weights.prefix_structure_ce_weight:
            matched = [prediction for prediction, item in zip(predictions, taught, strict=True) if item]
            structure = structure_of(self.vocabulary, prefix, [prediction.place for prediction in matched])
            writer.supervise([shift + place for place in structure], self.weights.prefix_structure_ce_weight)
        for prediction, item in zip(predictions, taught, strict=True):
            if item and item.kind == prediction.kind == "bbox_2d":
                writer.supervise_box(tuple([shift + position for position in prediction.positions]), item.bins)
        return writer

    def _rewritten_prefix(self, predictions: list[Prediction], taught: list[GroundTruthObject | None]) -> TargetWriter:
        """The canonical text of `predictions`, all of them matched, with their own desc and coordinates."""
        weight = self.weights.prefix_structure_ce_weight
        writer = TargetWriter(self.vocabulary, self.prompt)
        stretches = openings(self.vocabulary, predictions, 1, OPEN_ANSWER)
        for prediction, item, opening in zip(predictions, taught, stretches, strict=True):
            writer.write(opening, weight, 0.0)
            positions = writer.write_coordinates(prediction.bins, weight, 0.0)
            if item and item.kind == prediction.kind == "bbox_2d":
                writer.supervise_box(positions, item.bins)
        return writer

    def _write_tail(self, writer: TargetWriter, items: Sequence[GroundTruthObject], index: int, lead: str) -> None:
        """Append `items` from `object_<index>` on and end the answer. `lead` closes what stands before."""
        weights = self.weights
        for item, opening in zip(items, openings(self.vocabulary, items, index, lead), strict=True):
            writer.write(opening, 1.0, weights.desc_ce_weight)
            positions = writer.write_coordinates(item.bins, 1.0, weights.coord_ce_weight)
            if item.kind == "bbox_2d":
                writer.supervise_box(positions, item.bins)
        writer.write(ending(self.vocabulary, CLOSE_OBJECT if items else lead), 1.0, 1.0)

    def _target(self, writer: TargetWriter) -> Target:
        weights = self.weights
        return Target(
            record_id=self.record_id,
            token_ids=tuple(writer.token_ids),
            num_prompt_tokens=len(self.prompt),
            ce_positions=tuple(writer.ce_positions),
            ce_weights=tuple(writer.ce_weights),
            boxes=tuple(writer.boxes),
            ce_denominator=answer_weight(
                self.vocabulary, self.objects, weights.desc_ce_weight, weights.coord_ce_weight
            ),
        )

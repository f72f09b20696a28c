"""Targets: what a model is taught for one record, from the ground truth or from its own answer (docs/data.md).

ground truth:           prompt │ the whole answer
rollout, extras drop:   prompt │ the whole answer, with the model's own coordinates where it found the object
rollout, extras keep:   prompt │ its own ids, to the last coordinate kept │ the missing objects and the end
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from learner.detection.geometry import bounding_box
from learner.detection.matching import Match
from learner.detection.openings import OPEN_ANSWER, openings
from learner.detection.parsing import ParsedRollout
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import CLOSE_OBJECT, Describable
from learner.detection.target_writer import Box, TargetWriter, answer_weight, num_tokens, structure_of
from learner.detection.vocabulary import NUM_BINS, CoordinateVocabulary
from shared.errors import DataError


@dataclass(frozen=True)
class TargetWeights:
    """What is supervised how much.

    `desc_ce_weight` is for tokens that lie wholly in a desc value, `coord_ce_weight` for coordinates that are the
    truth's, `stop_ce_weight` for the token that decides to stop, `prefix_structure_ce_weight` for the structure of
    objects that the model found itself; all else weighs 1. Weights are ≥ 0. A prediction that was matched at an IoU
    under `supervise_iou` is an extra one here, and its ground truth missing. `prefix_extras` says whether extra
    predictions stay as context; those of a truncated answer never do.
    """

    desc_ce_weight: float = 1.0
    coord_ce_weight: float = 0.0
    stop_ce_weight: float = 1.0
    prefix_structure_ce_weight: float = 1.0
    prefix_extras: Literal["keep", "drop"] = "drop"
    supervise_iou: float = 0.5


@dataclass(frozen=True)
class Target:
    """A sequence to be teacher-forced: the prompt (image placeholders expanded), then an answer up to its stop token.

    `ce_positions` (ascending places in `token_ids`, each predicted from the place before it) and `ce_weights` belong
    together, as tuples, so that a target is hashable and compares by value. `boxes` holds ((p1, p2, p3, p4),
    (b1, b2, b3, b4)): the places of a box's coordinate tokens and the bins (x1, y1, x2, y2) they are pulled towards,
    each ground-truth box once. `ce_denominator` is the weight of all supervised tokens of the record's whole
    ground-truth answer, whatever `stop_ce_weight`: W_s of docs/numerics.md. `num_found` objects are taught in
    the model's own coordinates, the others in the truth's. `num_shortened` predictions were cut from the prefix's end
    to fit the capacity. Of an answer that was sampled to be paid nothing is supervised, and `advantages` belong to the
    places `sampled_positions`; `served_logprobs` are those of the policy that sampled, none where it is the one that
    learns.
    """

    record_id: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    ce_positions: tuple[int, ...]
    ce_weights: tuple[float, ...]
    boxes: tuple[Box, ...]
    ce_denominator: float
    num_found: int = 0
    num_shortened: int = 0
    sampled_positions: tuple[int, ...] = ()
    advantages: tuple[float, ...] = ()
    served_logprobs: tuple[float, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


DEFAULT_WEIGHTS = TargetWeights()
_BEHIND_ALL = (float(NUM_BINS), float(NUM_BINS))


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
    """Teach an answer with every object that it missed.

    `match` pairs `parsed.predictions` with `objects`. Where extras are kept, a target of more than `capacity` tokens
    loses objects from the end of its prefix until it fits. `changes` replace fields of `weights` by name.

    Raises DataError when not even the ground truth's own answer fits the capacity.
    """
    weights = replace(weights, **changes) if changes else weights
    lesson = _Lesson(record_id, tuple(prompt_token_ids), tuple(objects), vocabulary, weights)
    partner = {i: j for i, j, iou in match.pairs if iou >= weights.supervise_iou}
    if weights.prefix_extras == "drop" or parsed.truncated:
        target = lesson.from_found({j: parsed.predictions[i] for i, j in partner.items()})
        if capacity is None or target.num_tokens <= capacity:
            return target
    else:
        num_predictions = len(parsed.predictions)
        for num_kept in range(num_predictions, -1, -1):
            if capacity is None or lesson.num_tokens(parsed, partner, num_kept) <= capacity:
                target = lesson.from_prefix(parsed, partner, num_kept)
                return replace(target, num_shortened=num_predictions - num_kept)
    raise DataError(
        f"{record_id}: prompt and ground-truth answer have {lesson.from_ground_truth().num_tokens} tokens, but the "
        f"capacity is {capacity}; raise global_max_length or set custom.on_long_target: skip"
    )


def sampled_target(
    record_id: str,
    prompt_token_ids: Sequence[int],
    answer_token_ids: Sequence[int],
    advantages: Sequence[float],
    served_logprobs: Sequence[float] = (),
) -> Target:
    """An answer as it was sampled, each of its tokens to become likelier or less by its advantage."""
    start = len(prompt_token_ids)
    return Target(
        record_id=record_id,
        token_ids=(*prompt_token_ids, *answer_token_ids),
        num_prompt_tokens=start,
        ce_positions=(),
        ce_weights=(),
        boxes=(),
        ce_denominator=0.0,
        sampled_positions=tuple(range(start, start + len(answer_token_ids))),
        advantages=tuple(advantages),
        served_logprobs=tuple(served_logprobs),
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
        return self.from_found({})

    def from_found(self, found: Mapping[int, Prediction]) -> Target:
        """The truth's own answer. In the slots of objects in `found` stand the model's coordinates, where they may.

        They are not taught by cross-entropy, which would confirm them, but pulled to the truth. So the order, the names
        and the odds of stopping are those of the truth, in the context of the model's own errors.
        """
        weights, writer = self.weights, TargetWriter(self.vocabulary, self.prompt)
        own = in_order(found, self.objects)
        stretches = openings(self.vocabulary, self.objects, 1, OPEN_ANSWER)
        for j, (item, opening) in enumerate(zip(self.objects, stretches, strict=True)):
            structure = weights.prefix_structure_ce_weight if j in own else 1.0
            writer.write(opening, structure, weights.desc_ce_weight)
            if j in own:
                positions = writer.write_coordinates(own[j].bins, structure, 0.0)
            else:
                positions = writer.write_coordinates(item.bins, structure, weights.coord_ce_weight)
            if item.kind == "bbox_2d":
                writer.supervise_box(positions, item.bins)
        writer.write_ending(CLOSE_OBJECT if self.objects else OPEN_ANSWER, weights.stop_ce_weight)
        return self._target(writer, len(own))

    def num_tokens(self, parsed: ParsedRollout, partner: Mapping[int, int], num_kept: int) -> int:
        """Length of `from_prefix`, without writing it."""
        missing = self._missing(partner, num_kept)
        if not num_kept:
            return len(self.prompt) + num_tokens(self.vocabulary, missing)
        last = parsed.predictions[num_kept - 1]
        tail = num_tokens(self.vocabulary, missing, last.place.next_index, last.place.closing)
        return len(self.prompt) + last.positions[-1] + 1 + tail

    def from_prefix(self, parsed: ParsedRollout, partner: Mapping[int, int], num_kept: int) -> Target:
        """The first `num_kept` predictions in the rollout's own ids, then the objects that they missed.

        `partner` has the ground truths of the predictions that found one.
        """
        if not num_kept:
            return self.from_ground_truth()
        weights, predictions = self.weights, parsed.predictions[:num_kept]
        writer = self._own_prefix(parsed, predictions, partner)
        missing, place = self._missing(partner, num_kept), predictions[-1].place
        stretches = openings(self.vocabulary, missing, place.next_index, place.closing)
        for item, opening in zip(missing, stretches, strict=True):
            writer.write(opening, 1.0, weights.desc_ce_weight)
            positions = writer.write_coordinates(item.bins, 1.0, weights.coord_ce_weight)
            if item.kind == "bbox_2d":
                writer.supervise_box(positions, item.bins)
        writer.write_ending(CLOSE_OBJECT if missing else place.closing, weights.stop_ce_weight)
        return self._target(writer, len(self.objects) - len(missing))

    def _missing(self, partner: Mapping[int, int], num_kept: int) -> list[GroundTruthObject]:
        found = {j for i, j in partner.items() if i < num_kept}
        return [item for j, item in enumerate(self.objects) if j not in found]

    def _own_prefix(
        self, parsed: ParsedRollout, predictions: Sequence[Prediction], partner: Mapping[int, int]
    ) -> TargetWriter:
        """The rollout's ids, untouched, up to the last coordinate of the last of `predictions`."""
        prefix = parsed.prefix_token_ids[: predictions[-1].positions[-1] + 1]
        writer = TargetWriter(self.vocabulary, self.prompt + prefix)
        shift = len(self.prompt)
        if self.weights.prefix_structure_ce_weight:
            matched = [prediction.place for i, prediction in enumerate(predictions) if i in partner]
            structure = structure_of(self.vocabulary, prefix, matched)
            writer.supervise([shift + place for place in structure], self.weights.prefix_structure_ce_weight)
        for i, prediction in enumerate(predictions):
            item = self.objects[partner[i]] if i in partner else None
            if item and item.kind == prediction.kind == "bbox_2d":
                writer.supervise_box(tuple([shift + position for position in prediction.positions]), item.bins)
        return writer

    def _target(self, writer: TargetWriter, num_found: int) -> Target:
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
            num_found=num_found,
        )


def in_order(found: Mapping[int, Prediction], objects: Sequence[GroundTruthObject]) -> dict[int, Prediction]:
    """Those of the boxes that were found, by the places of their ground truths, that keep to the order of the truth.

    Objects are taught from top to bottom, ties from left to right. A box that would stand before what is written ahead
    of it, or behind the truth of the next object, is left out. A truth in random order has none to keep to.
    """
    own = {j: prediction for j, prediction in found.items() if objects[j].kind == prediction.kind == "bbox_2d"}
    corners = [_corner(item) for item in objects]
    if corners != sorted(corners):
        return own
    kept: dict[int, Prediction] = {}
    last = (-1.0, -1.0)
    for j, (corner, behind) in enumerate(pairwise([*corners, _BEHIND_ALL])):
        if j in own and last <= _corner(own[j]) <= behind:
            kept[j], corner = own[j], _corner(own[j])
        last = corner
    return kept


def _corner(item: Describable) -> tuple[float, float]:
    """Top and left, in bins."""
    left, top, _, _ = bounding_box(item.bins)
    return top, left

"""Where a decoder stops, and of what it is too unsure: the two numbers by which a detector is set. Pure.

The bias is taken from the logit of the token that ends an answer, at the places where an answer decides between ending
and going on (decision.py). With it greedy decoding goes on where P(end) / P(best other) is under e^bias; weighing that
token by w in the cross-entropy is the same as a bias of -ln w once a model has learned it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from learner.detection.decision import Probe, decision_place, ending
from learner.detection.openings import OPEN_ANSWER, openings
from learner.detection.parsing import ParsedRollout
from learner.detection.prediction import Prediction
from learner.detection.record_rules import KINDS
from learner.detection.serialize import BETWEEN_COORDINATES, CLOSE_OBJECT
from learner.detection.vocabulary import CoordinateVocabulary
from shared.wire import StopDecision


@dataclass(frozen=True)
class OperatingPoint:
    """`stop_bias` in nats, `score_threshold` 0..1 (the mean probability of an object's coordinate tokens)."""

    stop_bias: float = 0.0
    score_threshold: float = 0.0

    def decision(self, vocabulary: CoordinateVocabulary) -> StopDecision | None:
        """What a rollout server is told of it, None where there is nothing to tell."""
        return stop_decision(vocabulary, self.stop_bias) if self.stop_bias else None

    def filter(self, parsed: ParsedRollout, scores: Sequence[float]) -> tuple[ParsedRollout, tuple[float, ...]]:
        """The answer without the predictions that score too low, and the scores of those that stay."""
        kept = [place for place, score in enumerate(scores) if score >= self.score_threshold]
        predictions = tuple(parsed.predictions[place] for place in kept)
        return replace(parsed, predictions=predictions), tuple(scores[place] for place in kept)


PLAIN = OperatingPoint()
"""The model as it is."""


def stop_decision(vocabulary: CoordinateVocabulary, bias: float) -> StopDecision:
    """What a rollout server is told about the places of the decision, whatever the tokenizer."""
    leads = (OPEN_ANSWER, CLOSE_OBJECT)
    at_start, behind_coordinate = (
        ending(vocabulary, lead).token_ids[: decision_place(vocabulary, lead) + 1] for lead in leads
    )
    biased = {at_start[-1], behind_coordinate[-1]}
    return StopDecision(
        bias=bias,
        at_start=at_start,
        behind_coordinate=behind_coordinate,
        coordinate_ids=vocabulary.coordinate_ids,
        stands_alone=biased.isdisjoint(_other_ids(vocabulary)),
    )


def num_before_stop(predictions: Sequence[Prediction], stop_margins: Sequence[tuple[int, float]], bias: float) -> int:
    """How many predictions a greedy answer has at a smaller bias than it was decoded with.

    Both answers are the same until the first place at which the smaller bias lets the ending win.
    """
    stop = next((place for place, margin in stop_margins if margin > bias), None)
    if stop is None:
        return len(predictions)
    return sum(prediction.positions[-1] < stop for prediction in predictions)


def _other_ids(vocabulary: CoordinateVocabulary) -> set[int]:
    """The ids of an answer's structure but for those that a decision biases."""
    ids = set(vocabulary.encode(BETWEEN_COORDINATES))
    for lead in (OPEN_ANSWER, CLOSE_OBJECT):
        for kind in KINDS:
            (going_on,) = openings(vocabulary, [Probe(kind=kind)], 1, lead)
            ids.update(going_on.token_ids)
        place, end = decision_place(vocabulary, lead), ending(vocabulary, lead).token_ids
        ids.update(end[:place], end[place + 1 :])
    return ids

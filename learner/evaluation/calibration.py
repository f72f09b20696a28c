"""Choosing an operating point: every bias and threshold, tried on the answers of one decode. Pure.

    F = 2 TP / (k P + G)        P predictions, TP of them matched, G annotated objects, k = annotation_recall

With annotators who leave objects out at random, TP and G are both k times what whole annotations would give, so this is
F1 on whole ones; with k = 1 it is F1 on those that are there (docs/numerics.md, "The operating point").
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from learner.detection.agreement import IOU_THRESHOLDS, pairs_of
from learner.detection.operating_point import OperatingPoint, num_before_stop
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject
from learner.evaluation.answers import ScoredAnswer
from shared.wire import MAX_STOP_BIAS

BIASES = tuple(step / 2 for step in range(-8, int(2 * MAX_STOP_BIAS) + 1))
QUANTILES = 20
"""Thresholds lie at so many quantiles of the scores, whatever their scale: sharp coordinates score higher."""
SUREST_SHARE, FEWEST_SUREST = 0.1, 30
"""Of the objects that a model names by itself, those by which annotators are judged."""


@dataclass(frozen=True)
class Goal:
    """What is maximised: F1 over some IoU thresholds, among equal descs only or not."""

    ious: tuple[float, ...]
    by_desc: bool


GOALS = {
    "eval_rollout_f1_iou50": Goal(IOU_THRESHOLDS[:1], by_desc=False),
    "eval_rollout_f1_desc_iou50": Goal(IOU_THRESHOLDS[:1], by_desc=True),
    "eval_rollout_f1_iou50_95": Goal(IOU_THRESHOLDS, by_desc=False),
    "eval_rollout_f1_desc_iou50_95": Goal(IOU_THRESHOLDS, by_desc=True),
}
"""By the name of the metric that an evaluation has for it."""


@dataclass(frozen=True)
class Tried:
    """One operating point. `value` is the goal, corrected for what annotators leave out; the rest is as annotated."""

    point: OperatingPoint
    value: float
    precision: float
    recall: float
    predictions_per_object: float


@dataclass(frozen=True)
class Calibration:
    """What was found. `tried` has the best threshold of each bias; `surest` is None of a model that names too little.

    `surest` is the share of the surest objects that are annotated. Annotators cannot name a smaller share of all
    objects than of these, up to chance, so it is a lower bound of `annotation_recall`.
    """

    metric: str
    plain: Tried
    best: Tried
    tried: tuple[Tried, ...]
    num_images: int
    annotation_recall: float
    surest: float | None
    num_surest: int


def calibrate(
    answers: Sequence[ScoredAnswer], metric: str, annotation_recall: float, maskiou_resolution: int
) -> Calibration:
    """Try every point on answers that were decoded with MAX_STOP_BIAS; among equals the least change wins.

    `metric` is one of GOALS. Takes a moment for hundreds of images, minutes for many thousands of crowded ones.
    """
    goal = GOALS[metric]
    points = [OperatingPoint(bias, threshold) for bias in BIASES for threshold in thresholds_of(answers)]
    num_predictions, num_matched = [0] * len(points), [0] * len(points)
    for answer in answers:
        for place, (predicted, matched) in enumerate(counts_of(answer, points, goal, maskiou_resolution)):
            num_predictions[place] += predicted
            num_matched[place] += matched
    num_truth = sum(len(answer.record.objects) for answer in answers)
    all_tried = [
        _tried(point, predicted, matched / len(goal.ious), num_truth, annotation_recall)
        for point, predicted, matched in zip(points, num_predictions, num_matched, strict=True)
    ]
    by_bias = tuple(best_of(each for each in all_tried if each.point.stop_bias == bias) for bias in BIASES)
    surest, num_surest = surest_share(answers, maskiou_resolution)
    return Calibration(
        metric=metric,
        plain=next(each for each in all_tried if each.point == OperatingPoint()),
        best=best_of(by_bias),
        tried=by_bias,
        num_images=len(answers),
        annotation_recall=annotation_recall,
        surest=surest,
        num_surest=num_surest,
    )


def thresholds_of(answers: Iterable[ScoredAnswer]) -> list[float]:
    """No threshold, and the quantiles of all scores, to four digits."""
    scores = sorted(score for answer in answers for score in answer.scores)
    return sorted({0.0} | {round(scores[len(scores) * step // QUANTILES], 4) for step in range(1, QUANTILES) if scores})


def best_of(tried: Iterable[Tried]) -> Tried:
    """The highest value; among equals the point nearest to the plain one."""
    return max(tried, key=lambda each: (each.value, -abs(each.point.stop_bias), -each.point.score_threshold))


def counts_of(
    answer: ScoredAnswer, points: Iterable[OperatingPoint], goal: Goal, maskiou_resolution: int
) -> list[tuple[int, int]]:
    """Predictions and matches of one answer at each point. Many points keep the same objects, matched once."""
    predictions, truth = answer.parsed.predictions, answer.record.objects
    known: dict[tuple[int, ...], int] = {}
    counts = []
    for point in points:
        count = num_before_stop(predictions, answer.stop_margins, point.stop_bias)
        kept = tuple(place for place in range(count) if answer.scores[place] >= point.score_threshold)
        if kept not in known:
            known[kept] = _num_matched([predictions[place] for place in kept], truth, goal, maskiou_resolution)
        counts.append((len(kept), known[kept]))
    return counts


def _num_matched(
    predictions: Sequence[Prediction], truth: Sequence[GroundTruthObject], goal: Goal, maskiou_resolution: int
) -> int:
    """Matches, summed over the goal's thresholds."""
    if goal.by_desc:
        groups = [
            ([each for each in predictions if each.desc == desc], [each for each in truth if each.desc == desc])
            for desc in {each.desc for each in truth}
        ]
    else:
        groups = [(list(predictions), list(truth))]
    return sum(len(pairs_of(*group, iou, maskiou_resolution)) for group in groups for iou in goal.ious)


def surest_share(answers: Sequence[ScoredAnswer], maskiou_resolution: int) -> tuple[float | None, int]:
    """Which share of the surest objects is annotated at IoU 0.5, and how many those are."""
    scored: list[tuple[float, bool]] = []
    for answer in answers:
        count = num_before_stop(answer.parsed.predictions, answer.stop_margins, 0.0)
        named = answer.parsed.predictions[:count]
        matched = {place for place, _, _ in pairs_of(named, answer.record.objects, 0.5, maskiou_resolution)}
        scored += [(answer.scores[place], place in matched) for place in range(count)]
    num_surest = max(FEWEST_SUREST, round(SUREST_SHARE * len(scored)))
    if len(scored) < num_surest:
        return None, len(scored)
    surest = sorted(scored, key=lambda each: -each[0])[:num_surest]
    return sum(is_matched for _, is_matched in surest) / num_surest, num_surest


def _tried(point: OperatingPoint, predicted: int, matched: float, num_truth: int, annotation_recall: float) -> Tried:
    objects = annotation_recall * predicted + num_truth
    return Tried(
        point=point,
        value=2 * matched / objects if objects else 0.0,
        precision=matched / predicted if predicted else 0.0,
        recall=matched / num_truth if num_truth else 0.0,
        predictions_per_object=predicted / num_truth if num_truth else 0.0,
    )

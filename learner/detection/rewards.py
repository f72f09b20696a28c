"""What sampled answers to one record earned, and how much better each of their tokens did than its siblings.

An answer is cut into spans, one for each object and a last one for the stop:

    {"object_1": {"desc": "cat", "bbox_2d": ["1", "2", "3", "4"]}, "object_2": {… "8"]}}<|im_end|>
    └────────────────────── span 1 ───────────────────────┘└──── span 2 ─────┘└───── stop ─────┘

Going on, the name and the box of an object are one span, because one decision leads to all of them. The formulas and
their sources: docs/numerics.md.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from learner.detection.agreement import IOU_THRESHOLDS
from learner.detection.geometry import bounding_box, box_iou
from learner.detection.parsing import ParsedRollout
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject

Corner = tuple[float, float]
BoxWorth = Literal["iou", "iou50_95"]
_BEFORE_ALL: Corner = (-1.0, -1.0)
ROUNDING = 1e-9
"""An advantage under it is none: an optimizer without a scale would make a full step of what sums leave."""


@dataclass(frozen=True)
class RewardRules:
    """How answers are paid.

    A prediction that finds a ground truth at an IoU of `iou_min` or more is worth what `box_worth` says, its IoU or the
    share of 0.50, 0.55, … 0.95 that it reaches; the share `desc_share` of that only under the right name. A malformed,
    truncated or looping answer costs `invalid_cost`. `credit` "object" holds each span against what the siblings still
    earned from there on, "answer" each answer as a whole. With `in_order` answers go from top to bottom, so that what
    is still to be named is what lies further down.
    """

    iou_min: float = 0.5
    box_worth: BoxWorth = "iou"
    desc_share: float = 0.5
    invalid_cost: float = 0.3
    credit: Literal["object", "answer"] = "object"
    in_order: bool = True


@dataclass(frozen=True)
class GradedAnswer:
    """What an answer of n predictions is worth before its objects are charged their price.

    `ends` [n] are the places of the predictions' last coordinates in the rollout, `num_tokens` its length. `gains` [n]
    say by how much each prediction raised the value of the best assignment of those up to it, so that they sum to the
    value of the answer and a second box on one object gains next to nothing. `dropped` [n + 1] counts the entries of
    each span that are no prediction. `named` [n + 1] are the ground truths that the predictions before each span have
    found, `passed` [n + 1] how far down they have come; `found` [n] and `corners` [n] are the ground truth (−1 = none)
    and the place of each prediction, as the whole answer is matched. `cost` is that of a bad answer, else 0.
    """

    num_tokens: int
    ends: tuple[int, ...]
    gains: tuple[float, ...]
    dropped: tuple[int, ...]
    named: tuple[frozenset[int], ...]
    passed: tuple[Corner, ...]
    found: tuple[int, ...]
    corners: tuple[Corner, ...]
    cost: float

    @property
    def value(self) -> float:
        """Σ of the qualities of the best assignment."""
        return sum(self.gains)

    @property
    def num_named(self) -> int:
        """Entries that were named, valid or not: what the price is paid for."""
        return len(self.gains) + sum(self.dropped)

    def rewards(self, price: float) -> tuple[float, ...]:
        """[n + 1]: what each span earned. A dropped entry earns nothing and costs the price like any other."""
        gains = (*self.gains, 0.0)
        names = (*[1] * len(self.gains), 0)
        return tuple(g - price * (n + d) for g, n, d in zip(gains, names, self.dropped, strict=True))

    def reward(self, price: float) -> float:
        """What the whole answer earned."""
        return self.value - price * self.num_named - self.cost


def grade_answer(
    parsed: ParsedRollout, num_tokens: int, looped: bool, truth: Sequence[GroundTruthObject], rules: RewardRules
) -> GradedAnswer:
    """Grade an answer of `num_tokens` ids against the ground truth; `looped` if it was ended for repeating itself.

    Each prefix of the predictions is matched by itself: a later box can take a ground truth from an earlier one, and
    what it adds is what the best assignment gains by it, not what it is worth alone.
    """
    predictions = parsed.predictions
    quality = qualities(predictions, truth, rules)
    values, assignments = [0.0], [np.full(0, -1)]
    for count in range(1, len(predictions) + 1):
        value, assignment = best_assignment(quality[:count])
        values.append(value)
        assignments.append(assignment)
    places = [[_corner(truth[j]) if j >= 0 else _corner(predictions[i]) for i, j in enumerate(a)] for a in assignments]
    bad = parsed.malformed or parsed.truncated or looped
    return GradedAnswer(
        num_tokens=num_tokens,
        ends=tuple(prediction.positions[-1] for prediction in predictions),
        gains=tuple(after - before for before, after in pairwise(values)),
        dropped=_dropped_by_span(parsed),
        named=tuple(frozenset(a[a >= 0].tolist()) for a in assignments),
        passed=tuple(max(before, default=_BEFORE_ALL) for before in places),
        found=tuple(assignments[-1].tolist()),
        corners=tuple(places[-1]),
        cost=rules.invalid_cost if bad else 0.0,
    )


def qualities(
    predictions: Sequence[Prediction], truth: Sequence[GroundTruthObject], rules: RewardRules
) -> NDArray[np.float64]:
    """[P, G]: what each prediction would be worth for each ground truth."""
    if not predictions or not truth:
        return np.zeros((len(predictions), len(truth)))
    corners = [np.array([bounding_box(each.bins) for each in side], dtype=np.float64) for side in (predictions, truth)]
    iou = box_iou(*corners)
    worth = iou if rules.box_worth == "iou" else np.searchsorted(IOU_THRESHOLDS, iou, "right") / len(IOU_THRESHOLDS)
    is_named = np.array([[prediction.desc == item.desc for item in truth] for prediction in predictions])
    return np.where(iou >= rules.iou_min, worth * (1 - rules.desc_share + rules.desc_share * is_named), 0.0)


def best_assignment(quality: NDArray[np.float64]) -> tuple[float, NDArray[np.int64]]:
    """The highest Σ quality of an assignment, and the ground truth of each prediction in it (−1 = none), [P]."""
    rows, columns = linear_sum_assignment(quality, maximize=True)
    worth = quality[rows, columns]
    assignment = np.full(len(quality), -1)
    assignment[rows[worth > 0]] = columns[worth > 0]
    return float(worth.sum()), assignment


def advantages_of(answers: Sequence[GradedAnswer], price: float, rules: RewardRules) -> list[list[float]]:
    """One advantage for each token of each answer: its return from its span on, less what its siblings earned there.

    `answers` are two or more to one record. The baseline looks at the tokens before the span and at other answers
    alone, so that it biases nothing.
    """
    rewards = [answer.rewards(price) for answer in answers]
    totals = [answer.reward(price) for answer in answers]
    advantages = []
    for a, answer in enumerate(answers):
        siblings = [(answers[b], rewards[b], totals[b]) for b in range(len(answers)) if b != a]
        if rules.credit == "answer":
            baseline = fmean(total for _, _, total in siblings)
            advantage = totals[a] - baseline
            advantages.append([advantage if abs(advantage) > ROUNDING else 0.0] * answer.num_tokens)
            continue
        by_span = []
        for span, to_go in enumerate(list(accumulate(reversed(rewards[a])))[::-1]):
            baseline = fmean(_still_earned(each, earned, answer, span, rules) for each, earned, _ in siblings)
            advantage = to_go - answer.cost - baseline
            by_span.append(advantage if abs(advantage) > ROUNDING else 0.0)
        advantages.append([by_span[bisect_left(answer.ends, place)] for place in range(answer.num_tokens)])
    return advantages


def _still_earned(
    sibling: GradedAnswer, rewards: Sequence[float], answer: GradedAnswer, span: int, rules: RewardRules
) -> float:
    """What a sibling earned with what the answer has not named before the span, its cost included."""
    if rules.in_order:
        open_to = [corner > answer.passed[span] for corner in sibling.corners]
    else:
        open_to = [j not in answer.named[span] for j in sibling.found]
    return (
        sum(reward for reward, is_open in zip(rewards, open_to, strict=False) if is_open) + rewards[-1] - sibling.cost
    )


def _dropped_by_span(parsed: ParsedRollout) -> tuple[int, ...]:
    before = [0, *[prediction.place.num_dropped for prediction in parsed.predictions], parsed.dropped.total()]
    return tuple(after - earlier for earlier, after in pairwise(before))


def _corner(item: Prediction | GroundTruthObject) -> Corner:
    """Top and left, in bins."""
    left, top, _, _ = bounding_box(item.bins)
    return top, left

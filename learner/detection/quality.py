"""How good answers are, counted so that counts of many answers simply add up."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from learner.detection.geometry import bounding_box, box_iou
from learner.detection.matching import Match
from learner.detection.parsing import ParsedRollout
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject

DUPLICATE_IOU = 0.9


@dataclass(frozen=True)
class Quality:
    """Sums over answers. Ratios with nothing below the line are 0.

    A sound answer has a valid object, or rightly says that there is none. A named object is a matched one whose desc is
    its ground truth's.
    """

    num_answers: int = 0
    num_invalid: int = 0
    num_empty: int = 0
    num_truncated: int = 0
    num_with_predictions: int = 0
    num_sound: int = 0
    num_with_matches: int = 0
    num_predictions: int = 0
    num_ground_truth: int = 0
    num_matched: int = 0
    num_named: int = 0
    num_dropped: int = 0
    num_duplicates: int = 0
    num_gating_rejections: int = 0
    matched_iou_sum: float = 0.0

    def __add__(self, other: "Quality") -> "Quality":
        return Quality(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)})

    @property
    def precision(self) -> float:
        return _ratio(self.num_matched, self.num_predictions)

    @property
    def recall(self) -> float:
        return _ratio(self.num_matched, self.num_ground_truth)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: 2 · matched / (predictions + ground truth)."""
        return _ratio(2 * self.num_matched, self.num_predictions + self.num_ground_truth)

    @property
    def matched_iou(self) -> float:
        """Mean IoU of matched pairs."""
        return _ratio(self.matched_iou_sum, self.num_matched)

    @property
    def duplicate_rate(self) -> float:
        """Duplicates per prediction."""
        return _ratio(self.num_duplicates, self.num_predictions)

    @property
    def predictions_per_ground_truth(self) -> float:
        return _ratio(self.num_predictions, self.num_ground_truth)


def quality_of(parsed: ParsedRollout, ground_truth: Sequence[GroundTruthObject], match: Match) -> Quality:
    """Count one answer. `match` pairs `parsed.predictions` with `ground_truth`."""
    return Quality(
        num_answers=1,
        num_invalid=int(parsed.invalid),
        num_empty=int(parsed.empty),
        num_truncated=int(parsed.truncated),
        num_with_predictions=int(bool(parsed.predictions)),
        num_sound=int(bool(parsed.predictions) or (parsed.empty and not ground_truth)),
        num_with_matches=int(bool(match.pairs)),
        num_predictions=len(parsed.predictions),
        num_ground_truth=len(ground_truth),
        num_matched=len(match.pairs),
        num_named=sum(parsed.predictions[i].desc == ground_truth[j].desc for i, j, _ in match.pairs),
        num_dropped=parsed.dropped.total(),
        num_duplicates=count_duplicates(parsed.predictions),
        num_gating_rejections=match.gating_rejections,
        matched_iou_sum=sum(iou for _, _, iou in match.pairs),
    )


def count_duplicates(predictions: Sequence[Prediction]) -> int:
    """Predictions whose desc an earlier one has too, with a box IoU of at least 0.9. Polygons count by their box."""
    by_desc: dict[str, list[tuple[int, ...]]] = {}
    for prediction in predictions:
        by_desc.setdefault(prediction.desc, []).append(bounding_box(prediction.bins))
    return sum(_num_repeats(boxes) for boxes in by_desc.values() if len(boxes) > 1)


def _num_repeats(boxes: list[tuple[int, ...]]) -> int:
    corners = np.array(boxes, dtype=np.float64)
    earlier = np.tril(box_iou(corners, corners) >= DUPLICATE_IOU, k=-1)
    return int(earlier.any(axis=1).sum())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0

"""How many objects of an answer are right at each of COCO's IoU thresholds, counted so that counts simply add up."""

from collections.abc import Sequence
from dataclasses import dataclass

from learner.detection.matching import MatchingConfig, match_objects
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * place, 2) for place in range(10))
"""0.50, 0.55, … 0.95 (Lin et al. 2014)."""


@dataclass(frozen=True)
class Agreement:
    """Sums over answers; `num_matched` has one count for each of IOU_THRESHOLDS."""

    num_predictions: int = 0
    num_ground_truth: int = 0
    num_matched: tuple[int, ...] = (0,) * len(IOU_THRESHOLDS)

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.num_predictions + other.num_predictions,
            self.num_ground_truth + other.num_ground_truth,
            tuple(a + b for a, b in zip(self.num_matched, other.num_matched, strict=True)),
        )

    @property
    def num_objects(self) -> int:
        """Predictions and ground truth: what twice the matched ones are divided by in F1."""
        return self.num_predictions + self.num_ground_truth


def agreement_of(
    predictions: Sequence[Prediction], ground_truth: Sequence[GroundTruthObject], maskiou_resolution: int
) -> Agreement:
    """Match one answer anew at each threshold; `desc` takes no part.

    How a run matches in training takes none either, so that numbers of runs can be compared: every ground truth is a
    candidate, and a miss and a false alarm cost 1 each.
    """
    pairs = (pairs_of(predictions, ground_truth, threshold, maskiou_resolution) for threshold in IOU_THRESHOLDS)
    return Agreement(len(predictions), len(ground_truth), tuple(map(len, pairs)))


def pairs_of(
    predictions: Sequence[Prediction],
    ground_truth: Sequence[GroundTruthObject],
    threshold: float,
    maskiou_resolution: int,
) -> tuple[tuple[int, int, float], ...]:
    """What is matched at one IoU threshold, whatever it is called."""
    config = MatchingConfig(
        candidate_top_k=max(1, len(ground_truth)),
        maskiou_resolution=maskiou_resolution,
        maskiou_gate=threshold,
        fp_cost=1.0,
        fn_cost=1.0,
    )
    return match_objects(predictions, ground_truth, config).pairs


def agreement_by_desc(
    predictions: Sequence[Prediction], ground_truth: Sequence[GroundTruthObject], maskiou_resolution: int
) -> dict[str, Agreement]:
    """The same among the objects of each desc, so that only equal descs match."""
    descs = [item.desc for item in ground_truth] + [item.desc for item in predictions]
    return {
        desc: agreement_of(
            [item for item in predictions if item.desc == desc],
            [item for item in ground_truth if item.desc == desc],
            maskiou_resolution,
        )
        for desc in dict.fromkeys(descs)
    }

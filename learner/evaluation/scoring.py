"""From decoded answers to the scores of an evaluation. Pure but for COCO's own, which are faster-coco-eval's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from learner.detection.agreement import IOU_THRESHOLDS, Agreement, agreement_by_desc, agreement_of
from learner.detection.matching import Match, MatchingConfig, match_objects
from learner.detection.parsing import ParsedRollout
from learner.detection.quality import Quality, quality_of
from learner.detection.record import Record
from learner.evaluation.coco_ap import ClassPrecision, Precision, ScoredImage, average_precision
from learner.reporting.tallies import Tallies

AGNOSTIC = ("ap", "ap50", "ar100")


@dataclass(frozen=True)
class ClassScores:
    """Over the objects of one desc. `agreement` matches equal descs only."""

    desc: str
    agreement: Agreement
    precision: ClassPrecision


@dataclass(frozen=True)
class Scores:
    """One evaluation: `eval_*` metrics (docs/metrics.md), and the descs of the ground truth, most objects first.

    `images` are what it was taken of.
    """

    step: int
    num_images: int
    metrics: Mapping[str, float]
    classes: tuple[ClassScores, ...]
    images: tuple[ScoredImage, ...] = ()


class Scoring:
    """Takes answers one by one, in any order."""

    def __init__(self, matching: MatchingConfig) -> None:
        self._matching = matching
        self._tallies = Tallies()
        self._agreement: dict[str, Agreement] = {}
        self._images: dict[str, ScoredImage] = {}

    def add(self, record: Record, parsed: ParsedRollout, scores: Sequence[float]) -> Match:
        """Count an answer; `scores` has a number for each of its predictions. Returns the match within the gate."""
        predictions, objects = parsed.predictions, record.objects
        match = match_objects(predictions, objects, self._matching)
        self._tallies.count("eval_rollout_lost", 0)
        count_quality(self._tallies, quality_of(parsed, objects, match))
        resolution = self._matching.maskiou_resolution
        by_desc = agreement_by_desc(predictions, objects, resolution)
        count_agreement(self._tallies, agreement_of(predictions, objects, resolution), by_desc)
        for desc, agreement in by_desc.items():
            self._agreement[desc] = self._agreement.get(desc, Agreement()) + agreement
        self._images[record.record_id] = ScoredImage(record, tuple(predictions), tuple(scores))
        return match

    def lose(self, record: Record) -> None:
        """Count a record that no server answered as one with an answer that says nothing."""
        self._tallies.count("eval_rollout_lost", 1)
        self.add(record, ParsedRollout(malformed=True), ())

    def scores(self, step: int) -> Scores:
        """Reduce what was added; seconds of work for thousands of images."""
        images = [self._images[record_id] for record_id in sorted(self._images)]
        coco, agnostic = average_precision(images), average_precision(images, by_desc=False)
        return Scores(
            step=step,
            num_images=len(images),
            metrics=self._tallies.reduced() | coco_metrics(coco, agnostic),
            classes=tuple(self._classes(coco)),
            images=tuple(images),
        )

    def _classes(self, coco: Precision) -> list[ClassScores]:
        classes = [
            ClassScores(desc, agreement, coco.by_desc[desc])
            for desc, agreement in self._agreement.items()
            if agreement.num_ground_truth
        ]
        return sorted(classes, key=lambda each: (-each.agreement.num_ground_truth, each.desc))


def count_quality(tallies: Tallies, quality: Quality) -> None:
    """Count one answer by the run's own matching, `maskiou_gate` included."""
    predicted, truth, matched = quality.num_predictions, quality.num_ground_truth, quality.num_matched
    tallies.count("eval_rollout_precision", matched, predicted)
    tallies.count("eval_rollout_recall", matched, truth)
    tallies.count("eval_rollout_f1", 2 * matched, predicted + truth)
    tallies.count("eval_rollout_pred_objects", predicted)
    tallies.count("eval_rollout_gt_objects", truth)
    tallies.count("eval_rollout_matched", matched)
    tallies.count("eval_rollout_fp", predicted - matched)
    tallies.count("eval_rollout_fn", truth - matched)
    tallies.count("eval_rollout_matched_maskiou_mean", quality.matched_iou_sum, matched)
    tallies.count("eval_rollout_parse_truncated_rate", quality.num_truncated, 1)
    tallies.count("eval_rollout_sample_valid_pred_rate", quality.num_with_predictions, 1)


def count_agreement(tallies: Tallies, any_desc: Agreement, by_desc: Mapping[str, Agreement]) -> None:
    """Count one answer at COCO's thresholds, whatever objects are called and among equal descs."""
    same_desc = sum(by_desc.values(), Agreement())
    at_50, truth = any_desc.num_matched[0], any_desc.num_ground_truth
    tallies.count("eval_rollout_precision_iou50", at_50, any_desc.num_predictions)
    tallies.count("eval_rollout_recall_iou50", at_50, truth)
    for name, agreement in (("f1", any_desc), ("f1_desc", same_desc)):
        matched, objects = agreement.num_matched, agreement.num_objects
        tallies.count(f"eval_rollout_{name}_iou50", 2 * matched[0], objects)
        # Each threshold divides by the same number, so the mean of the ten F1s is one fraction.
        tallies.count(f"eval_rollout_{name}_iou50_95", 2 * sum(matched), len(IOU_THRESHOLDS) * objects)


def coco_metrics(by_desc: Precision, agnostic: Precision) -> dict[str, float]:
    """COCO's twelve numbers, and three of them with all objects in one category."""
    metrics = {f"eval_coco_{name}": value for name, value in by_desc.overall.items()}
    short = agnostic.overall
    return metrics | {f"eval_coco_agnostic_{name}": short[name] for name in AGNOSTIC if name in short}

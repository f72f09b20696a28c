"""Evaluation: decode the validation records with the current weights, parse and score them. No loss."""

from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from learner.detection.matching import MatchingConfig
from learner.detection.operating_point import PLAIN, OperatingPoint
from learner.evaluation.answers import ScoredAnswer, Validation
from learner.evaluation.scoring import Scores, Scoring
from learner.plan.progress import Progress
from learner.reporting.pictures import PictureSample, try_to_draw
from learner.reporting.sinks import Sinks


@dataclass(frozen=True)
class EvaluationPlan:
    """When validation happens and what is kept of it. `every` None = never during training."""

    every: int | None
    at_start: bool
    num_pictures: int
    pictures: Path


class Evaluation:
    """Scores the validation records on the rollout servers."""

    def __init__(self, plan: EvaluationPlan, validation: Validation, matching: MatchingConfig, sinks: Sinks) -> None:
        self._plan = plan
        self._matching = matching
        self._sinks = sinks
        self.validation = validation

    def due(self, progress: Progress) -> bool:
        """Whether the step that just ended is followed by an evaluation; the last one is, unless the run must stop."""
        every = self._plan.every
        return every is not None and not progress.stop_requested and (progress.step % every == 0 or progress.done)

    def due_before_training(self, progress: Progress) -> bool:
        """Whether the weights that training starts from are evaluated."""
        return self._plan.at_start and progress.step == 0

    async def run(self, progress: Progress, point: OperatingPoint = PLAIN) -> Scores:
        """Evaluate once, at an operating point; writes one `eval_*` record and the pictures."""
        validation, scoring = self.validation, Scoring(self._matching)
        drawn = {record.record_id for record in validation.records[: self._plan.num_pictures]}
        decision = point.decision(validation.asking.vocabulary)
        async with aclosing(validation.answers(progress.step, stop_decision=decision)) as answers:
            async for answer in answers:
                if answer.lost:
                    scoring.lose(answer.record)
                    continue
                sample = _count(scoring, answer, point)
                if sample.record.record_id in drawn:
                    self._keep(sample, progress.step)
        scores = await to_thread.run_sync(scoring.scores, progress.step)
        self._sinks.append({"step": scores.step, **scores.metrics})
        validation.console.print(evaluation_line(scores))
        return scores

    def _keep(self, sample: PictureSample, step: int) -> None:
        """Write one sample as a picture."""
        self._plan.pictures.mkdir(parents=True, exist_ok=True)
        name = sample.record.record_id.replace(":", "-").replace("/", "-")
        try_to_draw(sample, self._plan.pictures / f"eval-{step:06d}-{name}.png")


def _count(scoring: Scoring, answer: ScoredAnswer, point: OperatingPoint) -> PictureSample:
    parsed, scores = point.filter(answer.parsed, answer.scores)
    match = scoring.add(answer.record, parsed, scores)
    return PictureSample(record=answer.record, predictions=parsed.predictions, match=match, appended=())


def evaluation_line(scores: Scores) -> str:
    """One evaluation for a human. A score over nothing, such as the recall of no objects, is left out."""
    shown = {
        "F1 desc@0.5:0.95": "eval_rollout_f1_desc_iou50_95",
        "F1@0.5": "eval_rollout_f1_iou50",
        "recall@0.5": "eval_rollout_recall_iou50",
        "AP": "eval_coco_ap",
        "valid": "eval_rollout_sample_valid_pred_rate",
    }
    values = [f"{name} {scores.metrics[metric]:.3f}" for name, metric in shown.items() if metric in scores.metrics]
    return f"evaluation after step {scores.step} on {scores.num_images} images: {', '.join(values)}"

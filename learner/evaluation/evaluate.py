"""Evaluation: decode the validation records with the current weights, parse and score them. No loss."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from math import exp
from pathlib import Path

from anyio import to_thread
from rich.console import Console

from learner.data.encoding import Encoder
from learner.decoding.opening import Decoding
from learner.decoding.requests import decode_answers, decode_requests
from learner.detection.matching import MatchingConfig
from learner.detection.parsing import parse_rollout
from learner.detection.prediction import Prediction
from learner.detection.record import Record
from learner.detection.record_rules import KINDS
from learner.detection.vocabulary import CoordinateVocabulary
from learner.evaluation.scoring import Scores, Scoring
from learner.plan.progress import Progress
from learner.reporting.pictures import PictureSample, try_to_draw
from learner.reporting.sinks import Sinks, progress_bar
from learner.types import Answer, LostRecord, LostSample, Rollout
from shared.errors import ProtocolError
from shared.wire import PolicyVersion, Sampling


@dataclass(frozen=True)
class EvaluationPlan:
    """When validation happens and what is kept of it. `every` None = never during training."""

    records: tuple[Record, ...]
    every: int | None
    at_start: bool
    num_pictures: int
    pictures: Path


class Evaluation:
    """Scores the validation records on the rollout servers, greedily, whatever training samples with."""

    def __init__(
        self,
        plan: EvaluationPlan,
        *,
        encoder: Encoder,
        vocabulary: CoordinateVocabulary,
        matching: MatchingConfig,
        sampling: Sampling,
        decoding: Decoding,
        sinks: Sinks,
        console: Console,
    ) -> None:
        self._plan = plan
        self._encoder = encoder
        self._vocabulary = vocabulary
        self._matching = matching
        self._sampling = sampling.model_copy(update={"temperature": 0.0})
        self._decoding = decoding
        self._sinks = sinks
        self._console = console

    def due(self, progress: Progress) -> bool:
        """Whether the step that just ended is followed by an evaluation; the last one is, unless the run must stop."""
        every = self._plan.every
        return every is not None and not progress.stop_requested and (progress.step % every == 0 or progress.done)

    def due_before_training(self, progress: Progress) -> bool:
        """Whether the weights that training starts from are evaluated."""
        return self._plan.at_start and progress.step == 0

    async def run(self, progress: Progress) -> Scores:
        """Evaluate once; writes one `eval_*` record and the pictures."""
        scoring, records = Scoring(self._matching), self._plan.records
        drawn = {record.record_id for record in records[: self._plan.num_pictures]}
        with progress_bar(self._console) as bar:
            task = bar.add_task("evaluating", total=len(records))

            def lose(lost: LostSample | LostRecord) -> None:
                message = f"evaluation: {lost.record.record_id} lost: {lost.message}"
                self._console.print(message, style="yellow", markup=False)
                scoring.lose(lost.record)

            async with aclosing(self._answers(progress.step, lose)) as results:
                async for result in results:
                    bar.advance(task)
                    if isinstance(result, LostSample):
                        lose(result)
                        continue
                    sample = self._count(scoring, result)
                    if sample.record.record_id in drawn:
                        self._keep(sample, progress.step)
        scores = await to_thread.run_sync(scoring.scores, progress.step)
        self._sinks.append({"step": scores.step, **scores.metrics})
        self._console.print(evaluation_line(scores))
        return scores

    def _answers(self, step: int, lose: Callable[[LostRecord], None]) -> AsyncGenerator[Answer, None]:
        """Every record's answer, by the weights after `step` optimizer steps."""

        async def publish() -> PolicyVersion:
            return (await self._decoding.decoder.publish(step)).version

        encoded = self._encoder.encode_in_order(self._plan.records)
        requests = decode_requests(encoded, run_seed=0, step=0, lose=lose)
        return decode_answers(self._decoding.pool, requests, publish, self._sampling, return_logprobs=True)

    def _count(self, scoring: Scoring, rollout: Rollout) -> PictureSample:
        record = rollout.request.encoded.record
        parsed = parse_rollout(rollout.token_ids, self._vocabulary, rollout.finish_reason, kinds=KINDS)
        match = scoring.add(record, parsed, [score_of(prediction, rollout) for prediction in parsed.predictions])
        return PictureSample(record=record, predictions=parsed.predictions, match=match, appended=())

    def _keep(self, sample: PictureSample, step: int) -> None:
        """Write one sample as a picture."""
        self._plan.pictures.mkdir(parents=True, exist_ok=True)
        name = sample.record.record_id.replace(":", "-").replace("/", "-")
        try_to_draw(sample, self._plan.pictures / f"eval-{step:06d}-{name}.png")


def score_of(prediction: Prediction, rollout: Rollout) -> float:
    """How sure the model was of an object: the mean probability of its coordinate tokens.

    Raises ProtocolError for an answer without log-probabilities.
    """
    logprobs = rollout.token_logprobs
    if logprobs is None:
        raise ProtocolError(f"{rollout.request.uid}: the server was asked for log-probabilities and sent none")
    return sum(exp(logprobs[position]) for position in prediction.positions) / len(prediction.positions)


def evaluation_line(scores: Scores) -> str:
    """One evaluation for a human. A score over nothing, such as the recall of no objects, is left out."""
    shown = {
        "F1@0.5": "eval_rollout_f1_iou50",
        "recall@0.5": "eval_rollout_recall_iou50",
        "AP": "eval_coco_ap",
        "valid": "eval_rollout_sample_valid_pred_rate",
    }
    values = [f"{name} {scores.metrics[metric]:.3f}" for name, metric in shown.items() if metric in scores.metrics]
    return f"evaluation after step {scores.step} on {scores.num_images} images: {', '.join(values)}"

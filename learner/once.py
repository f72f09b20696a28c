"""What is done once with a checkpoint instead of training it: scoring it, and finding where it is best read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from anyio import to_thread

from learner.checkpoints.operating_point import SavedPoint, save_point, told_point
from learner.checkpoints.start import start_of
from learner.detection.operating_point import PLAIN, stop_decision
from learner.evaluation.calibration import calibrate
from learner.evaluation.coco_results import write_results
from learner.evaluation.tables import calibration_table, print_scores, reading_of, write_scores
from learner.reporting.console_tables import print_whole
from shared.errors import ConfigError
from shared.wire import MAX_STOP_BIAS, RepeatTerminate

if TYPE_CHECKING:
    from rich.console import Console

    from learner.run import Run
    from shared.config.models import Config

SCORES_FILE = "scores.json"
CURVE_FILE = "curve.json"
"""Written into the folder of an evaluation, and of a calibration."""


async def score(run: Run, config: Config, folder: Path, console: Console, *, is_plain: bool) -> None:
    """Score the checkpoint at its operating point, if it has one and `is_plain` does not leave it unused."""
    start = start_of(config.model.model, config.tuner, config.training)
    point = PLAIN if is_plain else told_point(start.checkpoint, console)
    scores = await run.evaluation.run(run.progress, point)
    print_scores(scores, console)
    write_scores(scores, folder / SCORES_FILE)
    assert config.custom.val_jsonl is not None, "what is evaluated has records to decode"
    await to_thread.run_sync(write_results, scores.images, folder, config.custom.val_jsonl.parent)
    console.print(f"{folder}: scores.json, predictions.json (COCO results, with images.json), pictures", markup=False)


async def calibrate_checkpoint(run: Run, config: Config, folder: Path, console: Console, *, metric: str) -> None:
    """Decode once with the largest bias, try every point on that, and keep the best beside the weights.

    Raises ConfigError for what cannot be calibrated.
    """
    checkpoint = start_of(config.model.model, config.tuner, config.training).checkpoint
    if checkpoint is None:
        raise ConfigError(f"model.model {config.model.model} is no folder here, where the point is kept; name one")
    if (penalty := config.rollout.repetition_penalty) != 1:
        raise ConfigError(
            f"rollout_matching.repetition_penalty: {penalty:g} moves the margins of the stop with every token; set it "
            "to 1 to calibrate, and to decode at what was found"
        )
    validation, recall = run.evaluation.validation, config.stage2.reward.annotation_recall
    decision = stop_decision(validation.asking.vocabulary, MAX_STOP_BIAS)
    limits = validation.asking.sampling.repeat_terminate or RepeatTerminate()
    most = limits.max_object_keys or 8 + 2 * max(len(record.objects) for record in validation.records)
    capped = limits.model_copy(update={"max_object_keys": most})
    answers = [
        answer
        async for answer in validation.answers(run.progress.step, stop_decision=decision, repeat_terminate=capped)
        if not answer.lost
    ]
    if not any(answer.stop_margins for answer in answers):
        raise ConfigError("no server told how near an answer was to its end; use rollout_backend hf or vllm")
    found = await to_thread.run_sync(calibrate, answers, metric, recall, config.rollout.maskiou_resolution)
    (folder / CURVE_FILE).write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    saved = SavedPoint(
        stop_bias=found.best.point.stop_bias,
        score_threshold=found.best.point.score_threshold,
        metric=metric,
        value=found.best.value,
        plain_value=found.plain.value,
        num_images=found.num_images,
        annotation_recall=recall,
    )
    print_whole(calibration_table(found), console)
    for line in reading_of(found):
        console.print(line, style="yellow" if line.startswith("warning") else None, markup=False)
    console.print(f"{save_point(saved, checkpoint)}: written; `boxloop eval` decodes at it", markup=False)

"""The arms of the demo: ways to train on from one checkpoint, each as long as the others, and what became of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from shared.errors import DataError

METRICS = {
    "f1": "eval_rollout_f1_iou50",
    "f1_desc": "eval_rollout_f1_desc_iou50",
    "recall": "eval_rollout_recall_iou50",
    "precision": "eval_rollout_precision_iou50",
    "valid": "eval_rollout_sample_valid_pred_rate",
}
"""What is told of an arm, IoU 0.5, on whole annotations; `valid` is the share of answers with an object."""
HEADINGS = {"f1": "F1", "f1_desc": "F1, equal desc", "recall": "recall", "precision": "precision", "valid": "valid"}


@dataclass(frozen=True)
class Arm:
    """A way to train on. `config` is a file of configs/demo, `cost` its step's in plain teacher-forced ones."""

    name: str
    title: str
    config: str
    cost: float

    def steps(self, budget: float) -> int:
        """Steps in the time of `budget` teacher-forced ones; whole cycles of a pattern of one to three."""
        return 6 * max(1, round(budget / self.cost / 6))


@dataclass(frozen=True)
class Story:
    """What is annotated in both stages, and the arms: the first is what the demo is about, the second its control.

    In five minutes Stage 1 takes `stage1_steps`, and every arm as long as `arm_steps` of plain teacher forcing.
    """

    about: str
    stage1_file: str
    stage2_file: str
    told: str
    stage1_steps: int
    arm_steps: int
    arms: tuple[Arm, ...]
    is_calibrated: bool


INCOMPLETE = Story(
    about="annotations that name 45 % of the objects, in both stages",
    stage1_file="train_annotated.jsonl",
    stage2_file="train_annotated.jsonl",
    stage1_steps=440,
    arm_steps=30,
    told="Where annotations leave objects out, likelihood learns to stop where annotators stop. A bias on the stop is "
    "free and a priced stop costs no more than teacher forcing; rewards were level with it in the same time when both "
    "were measured over three seeds (docs/recipes.md).",
    arms=(
        Arm("after", "rewards on own answers", "rewards.yaml", 4.0),
        Arm("control", "teacher forcing", "teacher.yaml", 1.0),
        Arm("priced", "teacher forcing, priced stop", "priced.yaml", 1.0),
        Arm("seed", "A, A, B as CoordExp has it", "seed.yaml", 1.5),
    ),
    is_calibrated=True,
)
WHOLE = Story(
    about="annotations with half of the objects left out, then whole ones",
    stage1_file="train_partial.jsonl",
    stage2_file="train.jsonl",
    stage1_steps=660,
    arm_steps=110,
    told="Stage 2 sees what Stage 1 was not shown. Teacher forcing learns most of that a step; A, A, B learns it in "
    "the context of its own errors and stays stable. What to do where annotations leave objects out in both stages "
    "takes a Stage 1 that has learned them: --minutes 20 tells that story.",
    arms=(
        Arm("after", "A, A, B", "stage2.yaml", 1.5),
        Arm("control", "teacher forcing", "control.yaml", 1.0),
    ),
    is_calibrated=False,
)


@dataclass(frozen=True)
class Outcome:
    """An arm's scores by the names of METRICS, and the steps and seconds that it took; none before any."""

    name: str
    title: str
    scores: Mapping[str, float]
    steps: int = 0
    seconds: float = 0.0


def outcomes_of(run_dir: Path, arm: Arm, before_title: str | None = None) -> list[Outcome]:
    """What a run's own log tells: its first evaluation when that has a title, and its last. Raises DataError."""
    log = run_dir / "logging.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    scored = [line for line in lines if METRICS["f1"] in line]
    if not scored:
        raise DataError(f"{log} holds no evaluation")
    steps = [line for line in lines if "time/step_s" in line]
    seconds = sum(line["time/step_s"] for line in steps)
    last = Outcome(arm.name, arm.title, scores_in(scored[-1]), steps[-1]["step"], seconds)
    return [last] if before_title is None else [Outcome("before", before_title, scores_in(scored[0])), last]


def scores_in(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The demo's scores among those of an evaluation; a precision over no predictions is 0."""
    return {name: metrics.get(metric, 0.0) for name, metric in METRICS.items()}


def numbers_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """For `summary.json`: `<score>_<arm>` of every score, and the arms in order with all that is known of each."""
    flat = {f"{name}_{each.name}": value for each in outcomes for name, value in each.scores.items()}
    arms = [
        {"name": each.name, "title": each.title, "steps": each.steps, "seconds": round(each.seconds, 1), **each.scores}
        for each in outcomes
    ]
    return {**flat, "arms": arms}


def comparison(outcomes: Sequence[Outcome], num_images: int) -> Table:
    """The arms, one below the other."""
    table = Table(title=f"{num_images} fresh images with whole annotations, IoU 0.5")
    table.add_column("")
    for heading in ("steps", "s", *HEADINGS.values()):
        table.add_column(heading, justify="right")
    for each in outcomes:
        spent = (str(each.steps), f"{each.seconds:.0f}") if each.steps else ("", "")
        table.add_row(each.title, *spent, *(f"{each.scores[name]:.3f}" for name in HEADINGS))
    return table

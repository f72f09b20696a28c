"""`boxloop demo`: the whole story on a CPU, in a few minutes, told by numbers that the run itself wrote."""

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from compose.demo_arms import (
    INCOMPLETE,
    METRICS,
    WHOLE,
    Arm,
    Outcome,
    Story,
    comparison,
    numbers_of,
    outcomes_of,
    scores_in,
)
from compose.environment import child_environment
from compose.launch_plan import Launch, Work
from compose.options import check_engine, fresh_folder
from compose.process import ProcessSpec
from compose.supervisor import run_program, run_supervised
from shared.config.overrides import EVALUATION, Override
from shared.config.shipped import shipped_configs

CONFIGS = shipped_configs() / "demo"
DEFAULT_MINUTES = 5.0
LONG_ENOUGH = 18.0
"""Minutes from which Stage 1 has the 1,500 steps of docs/decisions/0018; after 440 no arm has anything to stand on."""
NUM_TRAIN, NUM_VAL = 8192, 200
ANNOTATED, JITTER = 0.45, 0.05
"""Each object is annotated with this chance, its corners off by at most this share of its side."""
PACKAGES = ("boxloop", "torch", "transformers")
CALIBRATED = "the same, calibrated"


@dataclass(frozen=True)
class Demo:
    """One demo: where it writes, how long it trains, and what story it tells.

    `minutes` scales the steps of all arms, and below one the images too, which would take longer than the steps.
    """

    out: Path
    minutes: float
    engine: str
    seed: int
    tokenizer: str
    story: Story

    @property
    def stage1_steps(self) -> int:
        return max(10, round(self.story.stage1_steps * self.minutes / DEFAULT_MINUTES))

    def steps_of(self, arm: Arm) -> int:
        return arm.steps(self.story.arm_steps * self.minutes / DEFAULT_MINUTES)

    @property
    def num_train(self) -> int:
        return round(NUM_TRAIN * min(1.0, self.minutes))

    @property
    def num_val(self) -> int:
        return round(NUM_VAL * min(1.0, self.minutes))

    @property
    def checkpoint(self) -> Path:
        """What Stage 1 leaves behind and every arm starts from."""
        return self.out / "stage1" / f"checkpoint-{self.stage1_steps}"

    def folder_of(self, arm: Arm) -> Path:
        """The run directory of the first arm is the demo's own, so its curves and pictures are the report's."""
        return self.out if arm == self.story.arms[0] else self.out / arm.name

    def checkpoint_of(self, arm: Arm) -> Path:
        return self.folder_of(arm) / f"checkpoint-{self.steps_of(arm)}"

    def overrides(self, run_dir: Path, model: Path, steps: int) -> dict[str, Any]:
        """What the shipped configurations cannot know."""
        return {
            "training.output_dir": run_dir,
            "training.seed": self.seed,
            "training.max_steps": steps,
            "model.model": model,
            "custom.val_jsonl": self.out / "data" / "val.jsonl",
            "custom.extra.rollout_matching.rollout_backend": self.engine,
        }


def run_demo(
    minutes: float, engine: str, seed: int, out: Path | None, tokenizer: str, *, is_whole: bool = False
) -> int:
    """Run the demo and return its exit code; all that it makes lies under `out` (default: the next free runs/demo).

    Raises ConfigError for an engine that is not there, before anything is trained.
    """
    check_engine(engine)
    started = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a model of this size has no work for a second thread
    console = Console(highlight=False, soft_wrap=True)
    story = WHOLE if is_whole or minutes < LONG_ENOUGH else INCOMPLETE
    demo = Demo(fresh_folder(out, Path("runs/demo")), minutes, engine, seed, tokenizer, story)
    parts = parts_of(demo)
    for number, (title, part) in enumerate(parts.items(), 1):
        console.rule(f"{number}/{len(parts) + 1}  {title}", align="left")
        if code := part():
            console.print(f"The demo stopped with exit code {code}; its logs lie under {demo.out}", style="red")
            return code
    console.rule(f"{len(parts) + 1}/{len(parts) + 1}  Report", align="left")
    outcomes = told_by(demo)
    seconds = time.monotonic() - started
    write_summary(demo, outcomes, seconds)
    if code := python(demo, "learner.reporting.report", str(demo.out)):
        return code
    console.print(comparison(outcomes, demo.num_val))
    console.print(demo.story.told)
    console.print(f"{seconds:.0f} s in all. Open {demo.out / 'report.html'} in a browser.")
    return 0


def parts_of(demo: Demo) -> Mapping[str, Callable[[], int]]:
    """What is done, in order, by what is said of it."""
    parts: dict[str, Callable[[], int]] = {
        "Rendering shapes, building a tiny Qwen3-VL": partial(prepare, demo),
        f"Stage 1: teacher forcing on {demo.story.about.partition(',')[0]}": partial(train_stage1, demo),
    }
    for arm in demo.story.arms:
        parts[f"{arm.title[0].upper()}{arm.title[1:]}: {demo.steps_of(arm)} steps"] = partial(train_arm, demo, arm)
    if demo.story.is_calibrated:
        parts["Calibrated: a bias on the stop of the teacher-forced model, no step"] = partial(calibrate, demo)
    return parts


def prepare(demo: Demo) -> int:
    """Render the data, 200 images to calibrate on among it, and build the model."""
    tiny = ("--out", str(demo.out / "tiny"), "--tokenizer", demo.tokenizer, "--seed", str(demo.seed))
    return (
        render(demo, "data", demo.num_train, demo.num_val, demo.seed)
        or (demo.story.is_calibrated and render(demo, "chosen_on", demo.num_val, 1, demo.seed + 10_000))
        or python(demo, "learner.model.tiny", *tiny)
    )


def render(demo: Demo, name: str, num_train: int, num_val: int, seed: int) -> int:
    counts = ("--train", str(num_train), "--val", str(num_val), "--seed", str(seed), "--keep-fraction", "0.5")
    annotators = ("--annotate", str(ANNOTATED), "--jitter", str(JITTER))
    return python(demo, "learner.data.shapes", "--out", str(demo.out / name), *counts, *annotators)


def train_stage1(demo: Demo) -> int:
    """No server: the learner has the machine to itself."""
    train_file = demo.out / "data" / demo.story.stage1_file
    overrides = demo.overrides(demo.out / "stage1", demo.out / "tiny", demo.stage1_steps)
    return launch("stage1.yaml", {**overrides, "custom.train_jsonl": train_file}, server_port=None)


def train_arm(demo: Demo, arm: Arm) -> int:
    """One arm in its two processes; the first scores the checkpoint that it starts from, for all of them."""
    is_first = arm == demo.story.arms[0]
    changes = {
        **demo.overrides(demo.folder_of(arm), demo.checkpoint, demo.steps_of(arm)),
        "custom.train_jsonl": demo.out / "data" / demo.story.stage2_file,
        "training.eval_on_start": is_first,
        "custom.extra.rollout_matching.monitor_dump.enabled": is_first,
    }
    return launch(arm.config, changes)


def calibrate(demo: Demo) -> int:
    """Choose the operating point of the control on annotations as incomplete as it was trained on, then score it."""
    control = demo.story.arms[1]
    here = demo.overrides(demo.out / "calibrated", demo.checkpoint_of(control), 1)
    chosen = {
        **here,
        "custom.val_jsonl": demo.out / "chosen_on" / "train_annotated.jsonl",
        "custom.extra.stage2_ab.reward.annotation_recall": ANNOTATED,
        "custom.train_jsonl": demo.out / "data" / demo.story.stage1_file,
    }
    scored = {**chosen, **here}
    find = Work("calibrate", arguments=("--calibrate", METRICS["f1"]), resolved_name="config.calibrate.yaml")
    score = Work("evaluate", arguments=("--evaluate",), resolved_name="config.evaluate.yaml")
    return launch(control.config, chosen, work=find) or launch(control.config, scored, work=score)


def launch(config: str, changes: Mapping[str, Any], *, work: Work = Work(), server_port: int | None = 0) -> int:
    """Run one of the shipped configurations to its end."""
    overrides: tuple[Override, ...] = (*changes.items(), *(() if work.trains else EVALUATION))
    port = Launch.server_port if server_port is None else server_port
    return run_supervised(Launch(CONFIGS / config, overrides, server_port=port), work)


def python(demo: Demo, module: str, *arguments: str) -> int:
    """Run one of the learner's own programs to its end."""
    environment = child_environment(os.environ, gpus=(), token="", num_processes=1, disable_proxy=True)
    name = module.rpartition(".")[2]
    argv = (sys.executable, "-m", module, *arguments)
    return run_program(ProcessSpec(name, argv, environment, demo.out / f"{name}.log", on_console=True))


def told_by(demo: Demo) -> list[Outcome]:
    """Every arm from its own log: before any, the control and it calibrated, the others, and the first."""
    first, control, *others = demo.story.arms
    before, last = outcomes_of(demo.folder_of(first), first, before_title="before Stage 2")
    (taught,) = outcomes_of(demo.folder_of(control), control)
    outcomes = [before, taught]
    if demo.story.is_calibrated:
        scores = json.loads((demo.out / "calibrated" / "evaluation" / "scores.json").read_text())
        outcomes.append(replace(taught, name="calibrated", title=CALIBRATED, scores=scores_in(scores["metrics"])))
    outcomes += (outcome for arm in others for outcome in outcomes_of(demo.folder_of(arm), arm))
    return [*outcomes, last]


def write_summary(demo: Demo, outcomes: list[Outcome], seconds: float) -> None:
    """Write `summary.json`: `<score>_<arm>` for every score, the arms, and what they were measured on."""
    about = {
        "about": demo.story.about,
        "told": demo.story.told,
        "seconds": round(seconds, 1),
        "steps": demo.steps_of(demo.story.arms[0]),
        "stage1_steps": demo.stage1_steps,
        "engine": demo.engine,
        "tokenizer": demo.tokenizer,
        "seed": demo.seed,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    (demo.out / "summary.json").write_text(json.dumps(numbers_of(outcomes) | about, indent=2) + "\n")

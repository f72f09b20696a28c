"""Which way of training is right when: arms from one checkpoint, on one file, in the real two processes.

    python -m benchmarks.quality --setting incomplete --arms teacher priced reward --seeds 0 1 2 --seconds 210

Settings say what the annotations of both stages leave out; scores are always of whole and clean ones that no arm sees.
Arms take as many steps (`--steps`), or as many seconds of steps (`--seconds`: a short run of each arm from the first
seed's checkpoint says how many steps those are, for every seed, so that schedules know their end and a busy machine
changes no score); the seconds that they took stand beside their scores. `--rates` tries each arm at several learning
rates, to choose one on a seed that is not reported. `--calibrate` scores arms at operating points too, chosen on 200
further images: on whole annotations, on such as they train on, and on those with the annotators' recall told. Tables
are printed as they fill and written to `results.jsonl`, a line an arm and seed, so that an ended run goes on.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.quality_arms import ARMS, CALIBRATIONS, RATE, SCORES, SETTINGS, Arm, Setting
from compose.environment import child_environment
from compose.launch_plan import Launch, Work
from compose.process import ProcessSpec
from compose.supervisor import run_program, run_supervised
from shared.checkpoint_facts import OPERATING_POINT_FILE
from shared.config.overrides import EVALUATION
from shared.config.shipped import shipped_configs

CONFIGS = shipped_configs() / "demo"
NUM_CHOSEN_ON = 200
PACE_STEPS, NUM_SETTLING = 18, 6
"""Steps of the run that tells an arm's pace, and how many are not counted; the rest are whole cycles of any pattern."""
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """One setting and seed: its data, its checkpoint, and the arms that start from it."""

    out: Path
    setting: str
    seed: int
    stage1_steps: int
    num_train: int
    num_val: int
    pictures: Path | None = None
    after: str | None = None

    @property
    def folder(self) -> Path:
        return self.out / f"{self.setting}-{self.seed}"

    @property
    def annotators(self) -> Setting:
        return SETTINGS[self.setting]

    @property
    def stage1(self) -> Path:
        return self.folder / "stage1" / f"checkpoint-{self.stage1_steps}"

    @property
    def checkpoint(self) -> Path:
        """What arms start from: what Stage 1 has left, or the arm that they come `after`."""
        if self.after is None:
            return self.stage1
        return self.folder / self.after / f"checkpoint-{self.after.rpartition('-')[2]}"

    @property
    def paces(self) -> Path:
        return self.out / f"{self.setting}-paces.json"

    def overrides(self, run: str, model: Path, steps: int) -> dict[str, Any]:
        return {
            **self.annotators.changes,
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
        if self.stage1.exists():
            return
        tiny = self.folder / "tiny"
        self._render("data", self.num_train, self.num_val, self.seed)
        self._program("learner.model.tiny", "--out", str(tiny), "--tokenizer", "fused", "--seed", str(self.seed))
        self._run("stage1.yaml", self.overrides("stage1", tiny, self.stage1_steps), decodes=False)

    def pace_of(self, name: str) -> float:
        """Seconds of one of the arm's steps, from a short run that is thrown away; the same for all seeds."""
        paces = json.loads(self.paces.read_text()) if self.paces.exists() else {}
        if name not in paces:
            run = f"pace-{name}"
            changes = {**self.overrides(run, self.checkpoint, PACE_STEPS), **ARMS[name].overrides(self.annotators)}
            self._run("stage2.yaml", {**changes, "training.eval_strategy": "no", "training.eval_on_start": False})
            paces[name] = fmean(line["time/step_s"] for line in self._log(run)[NUM_SETTLING:])
            self.paces.write_text(json.dumps(paces))
        return float(paces[name])

    def run_of(self, name: str, steps: int) -> str:
        return f"{name}-{steps}" if self.after is None else f"{self.after}-{name}-{steps}"

    def train(self, name: str, arm: Arm, steps: int, rate: float | None) -> Result:
        """Run an arm to its end; its scores before and after, and its seconds."""
        run = self.run_of(name, steps) if rate is None else f"{self.run_of(name, steps)}-at-{rate:g}"
        changes = {**self.overrides(run, self.checkpoint, steps), **arm.overrides(self.annotators)}
        self._run("stage2.yaml", changes if rate is None else {**changes, RATE: rate})
        lines = self._log(run)
        before, *_, after = [line for line in lines if SCORES["F1"] in line]
        seconds = sum(line.get("time/step_s", 0.0) for line in lines)
        told = {"rate": rate, "seconds": seconds, "before": before[SCORES["F1"]]}
        return {**self._about(name, steps), **told, **scores_in(after)}

    def calibrate(self, name: str, steps: int, chosen_on: str) -> Result:
        """Choose the operating point of what an arm has left on one kind of file, and score it there."""
        file, told = CALIBRATIONS[chosen_on]
        if not (self.folder / "chosen_on").exists():
            self._render("chosen_on", NUM_CHOSEN_ON, 1, self.seed + 10_000)
        run = self.run_of(name, steps)
        checkpoint = self.folder / run / f"checkpoint-{steps}"
        own = Arm({}, told).overrides(self.annotators)
        scored = {**self.overrides(f"{run}-at-{chosen_on}", checkpoint, 1), **own}
        chosen = {**scored, "custom.val_jsonl": self.folder / "chosen_on" / file}
        for changes, *arguments in ((chosen, "--calibrate", SCORES["F1"]), (scored, "--evaluate")):
            work = Work("once", arguments=tuple(arguments), resolved_name="config.once.yaml")
            self._run("stage2.yaml", changes, work=work)
        point = json.loads((checkpoint / OPERATING_POINT_FILE).read_text())
        metrics = json.loads((scored["training.output_dir"] / "evaluation" / "scores.json").read_text())["metrics"]
        return {**self._about(f"{name}, bias by {chosen_on}", steps), "bias": point["stop_bias"], **scores_in(metrics)}

    def _about(self, arm: str, steps: int) -> dict[str, Any]:
        return {"setting": self.setting, "after": self.after, "arm": arm, "seed": self.seed, "steps": steps}

    def _log(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / run / "logging.jsonl").read_text().splitlines()]

    def _render(self, name: str, num_train: int, num_val: int, seed: int) -> None:
        of = self.annotators
        made = ("--out", str(self.folder / name), "--train", str(num_train), "--seed", str(seed))
        annotate = ("--annotate", str(of.probability), "--jitter", str(of.jitter))
        if of.is_tiles:
            self._program("learner.data.tiles", "--from", str(self.pictures), *made, *annotate)
        else:
            self._program("learner.data.shapes", *made, "--val", str(num_val), *annotate)

    def _run(self, config: str, changes: Mapping[str, Any], *, work: Work = Work(), decodes: bool = True) -> None:
        extra = () if work.trains else EVALUATION
        port = {"server_port": 0} if decodes else {}
        if code := run_supervised(Launch(CONFIGS / config, (*changes.items(), *extra), **port), work):
            sys.exit(code)

    def _program(self, module: str, *arguments: str) -> None:
        environment = child_environment(os.environ, gpus=(), token="", num_processes=1, disable_proxy=True)
        name = module.rpartition(".")[2]
        argv = (sys.executable, "-m", module, *arguments)
        if code := run_program(ProcessSpec(name, argv, environment, self.folder / f"{name}.log", on_console=True)):
            sys.exit(code)


def scores_in(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: metrics[metric] for name, metric in SCORES.items() if metric in metrics}


@dataclass(frozen=True)
class Results:
    """A line an arm and seed, in a file that a later run goes on with."""

    file: Path
    lines: list[Result]

    @classmethod
    def read(cls, file: Path) -> "Results":
        file.parent.mkdir(parents=True, exist_ok=True)
        return cls(file, [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else [])

    def holds(self, **about: Any) -> bool:
        return any(all(line.get(key) == value for key, value in about.items()) for line in self.lines)

    def add(self, line: Result, console: Console) -> None:
        self.lines.append(line)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        console.print(table_of(self.lines))


def table_of(lines: Sequence[Result]) -> Table:
    """A line for each arm and seed, and the mean of an arm's."""
    columns = ("setting", "after", "arm", "seed", "steps", "rate", "seconds", "bias", "before", *SCORES)
    table = Table(*columns, title="whole annotations that no arm has seen")
    kinds = [(line["setting"], line.get("after"), line["arm"]) for line in lines]
    for setting, after, arm in dict.fromkeys(kinds):
        own = [line for line, kind in zip(lines, kinds, strict=True) if kind == (setting, after, arm)]
        for line in own:
            table.add_row(*(_shown(line.get(column)) for column in columns))
        if len(own) > 1:
            means = {name: fmean(line[name] for line in own) for name in ("seconds", *SCORES) if name in own[0]}
            mean = {"setting": setting, "after": after, "arm": arm, "seed": "mean", **means}
            table.add_row(*(_shown(mean.get(column)) for column in columns), style="bold", end_section=True)
    return table


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.partition("\n")[0])
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=["incomplete"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["teacher", "priced", "reward"])
    parser.add_argument(
        "--calibrate", nargs="*", choices=ARMS, default=[], help="arms to score at operating points too"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=75, help="optimizer steps of an arm")
    length.add_argument("--seconds", type=float, help="seconds of steps of an arm, instead of steps")
    parser.add_argument("--after", metavar="RUN", help="start from what an arm has left, such as priced-450")
    parser.add_argument("--rates", nargs="+", type=float, default=[None], help="learning rates instead of an arm's own")
    parser.add_argument("--stage1-steps", type=int, default=1500)
    parser.add_argument("--train", type=int, default=8192, help="images to train on")
    parser.add_argument("--val", type=int, default=400, help="images to score on")
    parser.add_argument("--pictures", type=Path, help="JSONL of large pictures, for setting tiles")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    chosen = parser.parse_args()
    if chosen.calibrate and chosen.rates != [None]:
        parser.error("--calibrate scores arms at their own rates; leave --rates out")
    if "tiles" in chosen.setting and (chosen.pictures is None or chosen.calibrate):
        parser.error("setting tiles takes --pictures, and has none left to calibrate on")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console, results = Console(width=170), Results.read(chosen.out / "results.jsonl")
    for setting in chosen.setting:
        for seed in chosen.seeds:
            bench = Bench(
                chosen.out, setting, seed, chosen.stage1_steps, chosen.train, chosen.val, chosen.pictures, chosen.after
            )
            bench.prepare()
            for name in chosen.arms:
                steps = chosen.steps if chosen.seconds is None else round(chosen.seconds / bench.pace_of(name))
                about = {"setting": setting, "after": chosen.after, "seed": seed, "steps": steps}
                for rate in chosen.rates:
                    if not results.holds(arm=name, rate=rate, **about):
                        results.add(bench.train(name, ARMS[name], steps, rate), console)
                for chosen_on in CALIBRATIONS if name in chosen.calibrate else ():
                    if not results.holds(arm=f"{name}, bias by {chosen_on}", **about):
                        results.add(bench.calibrate(name, steps, chosen_on), console)


if __name__ == "__main__":
    main()

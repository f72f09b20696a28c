"""`python -m benchmarks.schedule [--engine vllm|hf]`: what decoding ahead does for the pattern A, A, B.

`lag 0` and `lag 2` are the wall time of a cycle over the longer of the learner's work and the decoding in it: a server
and the training loop, a core each. `scripted lag 0` and `scripted lag 2` are the same for seven servers whose answers
take up to a minute and a learner that needs 50 s of a cycle, all of it waited out in a tenth of the time. Beside each
stands the share of its time in which the servers decode.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from benchmarks.measure import print_measure
from benchmarks.two_processes import TimedStep, servers, trained, write_checkpoint, write_config, write_records
from learner.channels.channel import Objective
from learner.families.load import load_tokenizer
from learner.plan.schedule import Channel
from learner.plan.step_plan import StepTotals
from learner.plan.time_split import ServerActivity
from learner.training.learner import LaidOutPack, Learner
from learner.types import LearnedPack, StepResult

MATCHING, STAGE2 = "custom.extra.rollout_matching", "custom.extra.stage2_ab"
CYCLE = ("A", "A", "B")
NUM_ANSWERS = 64
"""Records of a step on either channel."""
LAGS = (0, 2)
WORK = ("time/post_rollout_pack_s", "time/forward_s", "time/backward_s", "time/optimizer_s")
SCALE = 10
NUM_SERVERS, SLOWEST_S, LEARNING_S = 7, 60.0, 50.0
"""Before the scale: the slowest answer, and the learner's work in a cycle."""


@dataclass(frozen=True)
class Cycle:
    """Seconds of one A, A, B, and the share of them in which the servers decoded."""

    wall_s: float
    learn_s: float
    decode_s: float
    decoding_share: float

    @classmethod
    def of(cls, began_at: float, steps: Sequence[TimedStep]) -> "Cycle":
        spent = [step.seconds(f"share/server_{activity.value}") for activity in ServerActivity for step in steps]
        decoding = sum(step.seconds(f"share/server_{ServerActivity.DECODING.value}") for step in steps)
        return cls(
            wall_s=steps[-1].ended_at - began_at,
            learn_s=sum(step.seconds(name) for step in steps for name in WORK),
            decode_s=sum(step.seconds("time/rollout_generate_s") for step in steps),
            decoding_share=decoding / sum(spent),
        )

    @property
    def ratio(self) -> float:
        return self.wall_s / max(self.learn_s, self.decode_s)


def cycles_of(steps: Sequence[TimedStep]) -> list[Cycle]:
    """Every cycle but the first, which warms both sides up."""
    ends = [place for place, step in enumerate(steps) if step.record.channel is Channel.B]
    return [Cycle.of(steps[before].ended_at, steps[before + 1 : end + 1]) for before, end in pairwise(ends)]


class PatientLearner:
    """Takes its time over every target and learns nothing."""

    def __init__(self, learner: Learner) -> None:
        self.loaded, self.lay_out = learner.loaded, learner.lay_out

    def accumulate(self, pack: LaidOutPack, objective: Objective, totals: StepTotals) -> LearnedPack:
        seconds = pack.batch.num_samples * LEARNING_S / SCALE / (len(CYCLE) * NUM_ANSWERS)
        time.sleep(seconds)
        return LearnedPack(pack.batch.record_ids, pack.num_tokens, pack.capacity, pack.collate_s, seconds, 0.0)

    def update(self) -> StepResult:
        return StepResult(loss=0.0, terms={}, grad_norm=0.0, learning_rate=0.0, optimizer_s=0.0)


def config_of(folder: Path, backend: str, num_cycles: int, num_objects: int, **sizes: int) -> Path:
    write_checkpoint(folder / "model", **sizes)
    write_records(folder / "data.jsonl", NUM_ANSWERS, num_objects)
    return write_config(
        folder,
        folder / "model",
        {
            "global_max_length": 4096,
            "training.max_steps": len(CYCLE) * num_cycles,
            "training.effective_batch_size": NUM_ANSWERS,
            "training.per_device_train_batch_size": NUM_ANSWERS,
            "custom.train_jsonl": str(folder / "data.jsonl"),
            f"{STAGE2}.schedule.pattern": list(CYCLE),
            f"{MATCHING}.rollout_backend": backend,
            f"{MATCHING}.max_new_tokens": 256,
            f"{MATCHING}.vllm.max_model_len": 1024,
            f"{MATCHING}.vllm.max_num_seqs": NUM_ANSWERS,
        },
    )


def write_script(file: Path, model: Path) -> None:
    """Answers that come after anything from a sixth of the slowest one's time on; few of them take long."""
    rng = random.Random(0)
    spread = [min(1.0, 1 / 6 + rng.expovariate(4)) for _ in range(NUM_ANSWERS - 1)]
    delays = {f"data:{number}": share * SLOWEST_S / SCALE for number, share in enumerate([1.0, *spread], 1)}
    stop = load_tokenizer(str(model)).convert_tokens_to_ids("<|im_end|>")
    file.write_bytes(orjson.dumps({"default": [stop], "delays": delays}))


def measure(prefix: str, config: Path, addresses: Sequence[str], replaced: Any = None, **details: object) -> None:
    for lag in LAGS:
        overrides = [f"{MATCHING}.max_lag={lag}"]
        cycles = cycles_of(asyncio.run(trained(config, addresses, overrides, learner=replaced)))

        def median(name: str, of: Sequence[Cycle] = cycles) -> float:
            return round(statistics.median(getattr(cycle, name) for cycle in of), 3)

        print_measure(
            "schedule",
            f"{prefix}lag {lag}",
            median("ratio"),
            "<= 1.10" if lag else "none",
            "max(learner work, decode work) of a cycle",
            len(cycles),
            **{name: median(name) for name in ("wall_s", "learn_s", "decode_s", "decoding_share")},
            **details,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedule", description=__doc__)
    parser.add_argument("--engine", choices=("vllm", "hf"), default="vllm")
    parser.add_argument("--cycles", type=int, default=3, help="measured cycles of each kind")
    parser.add_argument("--only", choices=("real", "scripted"), help="one of the two halves")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        if options.only != "scripted":
            folder = Path(name) / "real"
            config = config_of(folder, options.engine, options.cycles + 1, num_objects=3)
            with servers(config, folder, [()]) as addresses:
                measure("", config, addresses, engine=options.engine)
        if options.only != "real":
            folder = Path(name) / "scripted"
            config = config_of(folder, "hf", options.cycles + 1, num_objects=3, hidden_size=64, num_hidden_layers=1)
            write_script(folder / "script.json", folder / "model")
            played = ("--engine", "scripted", "--script", str(folder / "script.json"))
            with servers(config, folder, [played] * NUM_SERVERS) as addresses:
                measure("scripted ", config, addresses, PatientLearner, scale=SCALE, servers=NUM_SERVERS)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.overlap [--engine vllm|hf]`: how well a B step of 64 answers hides learning behind decoding.

A real server decodes on one core, the real training loop learns on another. All times run from a step's beginning,
before the first record is read and the weights are published; its wall time ends with its last pack. `schedule R`
divides it by that of the best possible schedule: answer i cannot be learned before it arrived (after a_i seconds) and
takes c_i seconds, its tokens at the rate that the same packs were learned at with nothing beside them, so no schedule
ends before max_i (a_i + Σ_{a_j ≥ a_i} c_j). `pipeline R` divides it by the longer of decoding alone, with the reading
and publishing before it, and learning alone. R is learning alone / decoding alone, set by the number of objects that a
target holds. `off` decodes all and then learns; it is also where both are timed alone. `chunks` is the common client:
it asks for two answers, and for the next two when it has both.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import print_measure
from benchmarks.two_processes import TimedStep, servers, trained, write_checkpoint, write_config, write_records

NUM_ANSWERS = 64
MAX_NEW_TOKENS = 256
FEW_OBJECTS, MANY_OBJECTS = 2, 12
"""Of a target, between which the cost of learning is measured and taken to be a straight line."""
MATCHING, CHANNEL_B = "custom.extra.rollout_matching", "custom.extra.stage2_ab.channel_b"
VARIANTS = {
    "off": [f"{CHANNEL_B}.enable_pipeline=false"],
    "pipeline": [],
    "chunks": [f"{MATCHING}.rollout_infer_batch_size=2", f"{MATCHING}.deterministic=true"],
}
"""Repeatable runs send batches whole, one at a time to each server."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one B step. Arrivals are (seconds after its beginning, tokens to learn), in order of time.

    `decode_s` begins with the first request, `to_first_request_s` after the step.
    """

    wall_s: float
    to_first_request_s: float
    decode_s: float
    learn_s: float
    num_tokens: int
    num_packs: int
    arrivals: tuple[tuple[float, int], ...]

    @classmethod
    def of(cls, step: TimedStep) -> "Timing":
        answers = step.record.learned
        decode_s = step.seconds("time/rollout_generate_s")
        first_request_at = max(each.rollout.arrived_at for each in answers) - decode_s
        began_at = step.ended_at - step.record.seconds
        parts = ("post_rollout_pack", "forward", "backward")
        return cls(
            wall_s=step.record.seconds - step.seconds("time/optimizer_s"),
            to_first_request_s=first_request_at - began_at,
            decode_s=decode_s,
            learn_s=sum(step.seconds(f"time/{part}_s") for part in parts),
            num_tokens=int(step.record.tallies.numerator("packing/post_rollout_fill")),
            num_packs=int(step.record.tallies.numerator("packing/num_packs")),
            arrivals=tuple(sorted((each.rollout.arrived_at - began_at, each.sample.num_tokens) for each in answers)),
        )

    def best_s(self, seconds_per_token: float) -> float:
        """When the best possible schedule ends: see the top of this file."""
        end = 0.0
        for arrived, num_tokens in self.arrivals:
            end = max(end, arrived) + num_tokens * seconds_per_token
        return end


class Bench:
    """One server, and steps of the training loop against it."""

    def __init__(self, folder: Path, engine: str, num_steps: int) -> None:
        self.folder, self.engine, self.num_steps = folder, engine, num_steps
        self._costs: dict[int, float] = {}
        write_checkpoint(folder / "model")
        self.config = write_config(
            folder,
            folder / "model",
            {
                "global_max_length": 4096,
                "training.effective_batch_size": NUM_ANSWERS,
                "training.per_device_train_batch_size": NUM_ANSWERS,
                "custom.train_jsonl": str(folder / "data" / "4.jsonl"),
                "custom.extra.stage2_ab.schedule.pattern": ["B"],
                f"{MATCHING}.rollout_backend": engine,
                f"{MATCHING}.max_new_tokens": MAX_NEW_TOKENS,
                f"{MATCHING}.vllm.max_model_len": 1024,
                f"{MATCHING}.vllm.max_num_seqs": NUM_ANSWERS,
            },
        )

    def timings(self, address: str, variant: str, num_objects: int, num_steps: int | None = None) -> list[Timing]:
        """`num_steps` steps after a first one, which warms both sides up."""
        num_steps = 1 + (num_steps or self.num_steps)
        records = self.folder / "data" / f"{num_objects}.jsonl"
        write_records(records, NUM_ANSWERS, num_objects)
        overrides = [*VARIANTS[variant], f"custom.train_jsonl={records}", f"training.max_steps={num_steps}"]
        return [Timing.of(step) for step in asyncio.run(trained(self.config, [address], overrides))[1:]]

    def num_objects_for(self, address: str, ratio: float) -> int:
        """How many objects a target must hold for learning alone to take `ratio` of decoding alone."""
        for number in (FEW_OBJECTS, MANY_OBJECTS):
            if number not in self._costs:
                (timing,) = self.timings(address, "off", number, num_steps=1)
                self._costs[number] = timing.learn_s / timing.decode_s
        few, many = self._costs[FEW_OBJECTS], self._costs[MANY_OBJECTS]
        return max(1, round(FEW_OBJECTS + (MANY_OBJECTS - FEW_OBJECTS) * (ratio - few) / (many - few)))


def report(measure: str, ratios: Sequence[float], aim: str, baseline: str, **details: object) -> None:
    print_measure("overlap", measure, statistics.median(ratios), aim, baseline, len(ratios), **details)


def measure(bench: Bench, address: str, ratio: float) -> None:
    num_objects = bench.num_objects_for(address, ratio)
    off, on = (bench.timings(address, variant, num_objects) for variant in ("off", "pipeline"))
    rates = [each.learn_s / each.num_tokens for each in off]
    decode_s, learn_s = (statistics.median(getattr(each, name) for each in off) for name in ("decode_s", "learn_s"))
    longest = [max(each.to_first_request_s + each.decode_s, each.learn_s) for each in off]
    details = {
        "engine": bench.engine,
        "learn_to_decode": round(learn_s / decode_s, 3),
        "decode_s": round(decode_s, 3),
        "learn_s": round(learn_s, 3),
        "wall_s": round(statistics.median(each.wall_s for each in on), 3),
        "to_first_request_s": round(statistics.median(each.to_first_request_s for each in on), 3),
        "decode_beside_learning_s": round(statistics.median(each.decode_s for each in on), 3),
        "learn_beside_decoding_s": round(statistics.median(each.learn_s for each in on), 3),
        "packs": statistics.median(each.num_packs for each in on),
        "num_objects": num_objects,
    }
    best = [each.wall_s / each.best_s(rate) for each, rate in zip(on, rates, strict=True)]
    report(f"schedule {ratio}", best, "<= 1.05", "best schedule for the arrivals", **details)
    aim = "<= 1.10" if ratio == 0.5 else "none"
    alone = "max(decoding alone, learning alone)"
    report(f"pipeline {ratio}", [on_.wall_s / s for on_, s in zip(on, longest, strict=True)], aim, alone, **details)
    report(f"off {ratio}", [each.wall_s / s for each, s in zip(off, longest, strict=True)], "none", alone)
    if ratio == 0.5:
        chunks = bench.timings(address, "chunks", num_objects)
        report(f"chunks {ratio}", [each.wall_s / s for each, s in zip(chunks, longest, strict=True)], "none", alone)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=__doc__)
    parser.add_argument("--engine", choices=("vllm", "hf"), default="vllm")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each kind")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(folder, options.engine, options.steps)
        with servers(bench.config, folder, [()]) as (address,):
            for ratio in (0.5, 1.0):
                measure(bench, address, ratio)


if __name__ == "__main__":
    main()

"""One JSON line a measure, and timing against a baseline in the same run."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Median seconds of both sides and the median of the ratios of neighbouring runs (ours / baseline)."""

    ours_s: float
    baseline_s: float
    ratio: float
    runs: int


Clock = Callable[[], float]


def seconds_of(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one run by `clock`, without garbage collection in it.

    `time.process_time` suits work on one thread: it does not count what other processes took.
    """
    gc.collect()
    gc.disable()
    started = clock()
    try:
        work()
        return clock() - started
    finally:
        gc.enable()


def compared(
    ours: Callable[[], object], baseline: Callable[[], object], runs: int = 5, clock: Clock = time.perf_counter
) -> Comparison:
    """Time both in turns, after one run of each that does not count."""
    (comparison,) = compared_after({"": lambda: None}, ours, baseline, runs, clock).values()
    return comparison


def compared_after(
    preparations: Mapping[str, Callable[[], object]],
    ours: Callable[[], object],
    baseline: Callable[[], object],
    runs: int = 5,
    clock: Clock = time.perf_counter,
) -> dict[str, Comparison]:
    """Time ours after each of the preparations, which take no part, and the baseline, in turns as `compared` does."""
    ours(), baseline()
    rounds = []
    for _ in range(runs):
        seconds = {}
        for name, prepare in preparations.items():
            prepare()
            seconds[name] = seconds_of(ours, clock)
        rounds.append((seconds, seconds_of(baseline, clock)))
    return {
        name: Comparison(
            ours_s=statistics.median(seconds[name] for seconds, _ in rounds),
            baseline_s=statistics.median(theirs for _, theirs in rounds),
            ratio=statistics.median(seconds[name] / theirs for seconds, theirs in rounds),
            runs=runs,
        )
        for name in preparations
    }


def print_measure(
    benchmark: str, measure: str, ratio: float, aim: str, baseline: str, runs: int, **details: object
) -> None:
    """Print a measure. `aim` is what the ratio should be, such as "<= 1.5"; `details` are whatever explains it."""
    line = {"benchmark": benchmark, "measure": measure, "ratio": round(ratio, 4), "aim": aim, "baseline": baseline}
    print(json.dumps({**line, "runs": runs, **details}, ensure_ascii=False), flush=True)

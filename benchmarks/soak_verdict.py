"""Whether a soak went well, from what was seen of it: series in, verdicts out."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

LONGEST_PAUSE_S = 90.0
"""Steps may stand still for so long: a killed learner is started again with its servers, and everything loads."""
SHORTEST_LIFE_S = 60.0
"""A process that was seen for less says nothing about its memory."""
WARM_UP = 0.3
"""Share of a life in which memory may still grow."""
MOST_GROWTH = 1.05
LASTING = ("learner", "server-0")
"""What must live long enough to be judged; the other server is the one that dies."""

Series = Sequence[tuple[float, float]]
"""(seconds since the start, MiB)"""


@dataclass
class Seen:
    """What was seen of a run from outside, in seconds since its start.

    `step_times` are the moments at which new steps were seen, `memory` has a series for each process by name and pid,
    `wrong_exits` the exit codes that were not those expected.
    """

    step_times: list[float] = field(default_factory=list)
    memory: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)
    wrong_exits: list[int] = field(default_factory=list)
    ended_at: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """One measure: `ratio` against `baseline`, and whether it is as it should be."""

    measure: str
    ratio: float
    aim: str
    baseline: str
    is_well: bool
    details: Mapping[str, object] = field(default_factory=dict)


def verdicts_on(seen: Seen, ledger: Sequence[Mapping[str, Any]], num_records: int, per_step: int) -> list[Verdict]:
    """All that is asked of a soak. `ledger` has a line a step; an epoch is `num_records` records."""
    pause_s = longest_pause(seen.step_times, seen.ended_at)
    wrong = lost_or_doubled(ledger, num_records, per_step)
    records = len(ledger) * per_step
    return [
        Verdict(
            "longest pause",
            pause_s / LONGEST_PAUSE_S,
            "<= 1",
            f"{LONGEST_PAUSE_S:g} s",
            pause_s <= LONGEST_PAUSE_S,
            {"steps": len(ledger), "seconds": round(seen.ended_at)},
        ),
        Verdict(
            "lost or doubled",
            wrong / max(1, records),
            "== 0",
            "records learned",
            wrong == 0 and records > 0,
            {"records": records},
        ),
        Verdict("wrong exit codes", len(seen.wrong_exits), "== 0", "none", not seen.wrong_exits),
        *memory_verdicts(seen.memory),
    ]


def longest_pause(step_times: Sequence[float], ended_at: float) -> float:
    """Seconds of the longest time without a new step: before the first, between two, or after the last."""
    return max(after - before for before, after in pairwise((0.0, *step_times, ended_at)))


def lost_or_doubled(ledger: Sequence[Mapping[str, Any]], num_records: int, per_step: int) -> int:
    """How often a record is missing from an epoch or stands in it once more than it should, and a step likewise.

    An epoch is whole steps. The last one may be unfinished: it then holds as many records as its steps have.
    """
    steps = Counter(int(line["step"]) for line in ledger)
    last = max(steps, default=0)
    wrong = sum(abs(steps[step] - 1) for step in range(1, last + 1))
    steps_an_epoch = num_records // per_step
    for first in range(1, last + 1, steps_an_epoch):
        epoch = range(first, min(first + steps_an_epoch, last + 1))
        names = [name for line in ledger if line["step"] in epoch for name in line["trained"]]
        num_distinct = len(set(names))
        wrong += len(epoch) * per_step - num_distinct + len(names) - num_distinct
    return wrong


def memory_verdicts(memory: Mapping[tuple[str, int], Series]) -> list[Verdict]:
    """One for each process that lived long enough, and one for what should have and did not."""
    lives = {key: series for key, series in memory.items() if series[-1][0] - series[0][0] >= SHORTEST_LIFE_S}
    verdicts = []
    for (name, pid), series in lives.items():
        ratio, slope = growth(series)
        details = {"pid": pid, "mib": round(series[-1][1], 1), "mib_per_minute": round(slope, 3)}
        is_flat = ratio <= MOST_GROWTH
        verdicts.append(Verdict(f"memory {name}", ratio, f"<= {MOST_GROWTH}", "after warm-up", is_flat, details))
    missing = set(LASTING) - {name for name, _ in lives}
    verdicts += [
        Verdict(f"memory {name}", 0.0, f"lives {SHORTEST_LIFE_S:g} s", "none", is_well=False)
        for name in sorted(missing)
    ]
    return verdicts


def growth(series: Series) -> tuple[float, float]:
    """Memory at the end against that after the warm-up, by medians, and MiB a minute by least squares."""
    settled = series[int(WARM_UP * len(series)) :]
    quarter = max(1, len(settled) // 4)
    first, last = (statistics.median(mib for _, mib in part) for part in (settled[:quarter], settled[-quarter:]))
    times, sizes = zip(*settled, strict=True)
    return last / first, 60 * statistics.linear_regression(times, sizes).slope

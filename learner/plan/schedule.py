"""Which channel an optimizer step belongs to: a function of the step alone, so resume needs no state."""

from collections.abc import Sequence
from enum import Enum


class Channel(Enum):
    """The two kinds of optimizer step."""

    A = "A"
    B = "B"


def channel_of(step: int, pattern: Sequence[str]) -> Channel:
    """Return the channel of optimizer step `step` (counted from 0).

    Raises ValueError for a negative step, an empty pattern or an entry other than "A" and "B".
    """
    if step < 0 or not pattern:
        raise ValueError(f"step must be ≥ 0 and the pattern not empty, got step {step} and pattern {list(pattern)}")
    return Channel(pattern[step % len(pattern)])


def decode_lags(pattern: Sequence[str], max_lag: int) -> list[int]:
    """For each B of the repeating pattern, by how many steps its decoding may begin before it.

    A decoding begins neither more than `max_lag` steps ahead nor before the B step before it has ended.
    """
    around = [place for place, entry in enumerate((*pattern, *pattern)) if entry == Channel.B.value]
    in_second_round = range(len(around) // 2, len(around))
    return [min(max_lag, around[place] - around[place - 1] - 1) for place in in_second_round]

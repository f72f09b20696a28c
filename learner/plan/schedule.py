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

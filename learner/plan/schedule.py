"""Which channel an optimizer step belongs to: a function of the step alone, so resume needs no state."""

from collections.abc import Iterator, Sequence
from enum import Enum

from shared.config.channels import DECODES


class Channel(Enum):
    """The kinds of optimizer step, by their letters in `schedule.pattern`."""

    A = "A"
    B = "B"
    R = "R"

    @property
    def decodes(self) -> bool:
        """Whether such a step learns from answers that servers decode."""
        return DECODES[self.value]


def channel_of(step: int, pattern: Sequence[str]) -> Channel:
    """Return the channel of optimizer step `step` (counted from 0).

    Raises ValueError for a negative step, an empty pattern or an entry that is no channel.
    """
    if step < 0 or not pattern:
        raise ValueError(f"step must be ≥ 0 and the pattern not empty, got step {step} and pattern {list(pattern)}")
    return Channel(pattern[step % len(pattern)])


def decode_starts(pattern: Sequence[str], max_lag: int, num_steps: int) -> Iterator[tuple[int, int]]:
    """For each of the first `num_steps` steps that decodes: the step, and the one with which its decoding begins.

    A decoding begins neither more than `max_lag` steps ahead nor before the decoding step before it has ended. Its
    answers are of the weights of the step with which it begins.
    """
    earliest = 0
    for step in range(num_steps):
        if channel_of(step, pattern).decodes:
            yield step, max(earliest, step - max_lag)
            earliest = step + 1


def decode_lags(pattern: Sequence[str], max_lag: int) -> list[int]:
    """For each decoding step of the repeating pattern, by how many steps its decoding may begin before it."""
    starts = [step - start for step, start in decode_starts(pattern, max_lag, 2 * len(pattern))]
    return starts[len(starts) // 2 :]

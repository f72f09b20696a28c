"""W̄ of docs/numerics.md: how much an answer of the training records weighs."""

from collections.abc import Callable
from contextlib import suppress
from statistics import fmean

from learner.data.records import RecordSource
from learner.detection.record import Record, RecordError

MOST_WEIGHED = 2048


def mean_answer_weight(source: RecordSource, weigh: Callable[[Record], float]) -> float:
    """The mean of `weigh` over the records, at least 1.

    Of more than MOST_WEIGHED records so many are looked at, evenly spaced in the file: a constant that scales all steps
    alike need not be exact, and reading a large file once more would take longer than it is worth.
    """
    weights = []
    for line in source.spaced_lines(MOST_WEIGHED):
        with suppress(RecordError):  # spoilt since the file was checked: told when the record's turn comes
            weights.append(weigh(source.read(line)))
    return max(1.0, fmean(weights or [1.0]))

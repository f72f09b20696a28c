"""Sums behind metrics: what a step counted, and how several steps become one logged record.

A metric's meaning stands in shared/metrics.py; here is only the arithmetic of its reduction.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

from shared.metrics import metric_named


class Tallies:
    """Numerators, denominators and single values, by metric name."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def count(self, name: str, numerator: float, denominator: float = 0.0) -> None:
        """Add to a ratio's numerator and denominator, or to a sum."""
        sums = self._sums[name]
        sums[0] += numerator
        sums[1] += denominator

    def note(self, name: str, value: float) -> None:
        """Add one value of a percentile, or the newest of a `last`."""
        self._values[name].append(value)

    def numerator(self, name: str) -> float:
        """The sum so far on top of a metric's fraction."""
        return self._sums[name][0]

    def fraction(self, name: str) -> tuple[float, float]:
        """The sums so far on top of a metric's fraction and under it; zeros for one that was not counted."""
        numerator, denominator = self._sums.get(name, (0.0, 0.0))
        return numerator, denominator

    def __iadd__(self, other: "Tallies") -> "Tallies":
        for name, (numerator, denominator) in other._sums.items():
            self.count(name, numerator, denominator)
        for name, values in other._values.items():
            self._values[name].extend(values)
        return self

    def reduced(self) -> dict[str, float]:
        """Every metric's value. A ratio whose denominator is 0 has none and is left out."""
        record: dict[str, float] = {}
        for name, (numerator, denominator) in self._sums.items():
            if metric_named(name).reduction == "sum":
                record[name] = numerator
            elif denominator:
                record[name] = numerator / denominator
        for name, values in self._values.items():
            reduction = metric_named(name).reduction
            record[name] = values[-1] if reduction == "last" else percentile(values, int(reduction[1:]))
        return record


def percentile(values: Iterable[float], percent: int) -> float:
    """Nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]

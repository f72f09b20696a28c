"""What an object costs and what an advantage is divided by: moving averages over the R steps that are done.

They come from before the step, so that a record can be learned as soon as its answers are in, whatever the order, and
loss and gradient depend on neither packing nor timing. Only the first R step of a run has nothing to look back on: it
is gathered whole, and its own sums serve.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Protocol

from shared.config.stage2 import RewardSection

SMALLEST_SCALE = 0.1
"""Advantages under it are noise: divided by it they would be full steps of an optimizer that knows no scale."""
SOFT_F1_OF_A_LEARNER = 0.12
"""Of sampled answers, boxes worth their IoU. Below it annotations teach more than rewards (docs/decisions/0017)."""


@dataclass(frozen=True)
class RewardSums:
    """Sums over the answers of a step: qualities, objects named, annotated ones; squared advantages, and their tokens.

    RewardSums(value=14.2, named=41, annotated=64, squares=88.1, tokens=1920)
    """

    value: float = 0.0
    named: float = 0.0
    annotated: float = 0.0
    squares: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: "RewardSums") -> "RewardSums":
        return RewardSums(**{name: mine + theirs for name, mine, theirs in self._beside(other)})

    def moved(self, other: "RewardSums", decay: float) -> "RewardSums":
        """`decay` of these and the rest of the others."""
        return RewardSums(**{name: decay * mine + (1 - decay) * theirs for name, mine, theirs in self._beside(other)})

    def _beside(self, other: "RewardSums") -> list[tuple[str, float, float]]:
        theirs = asdict(other)
        return [(name, mine, theirs[name]) for name, mine in asdict(self).items()]


class Fractions(Protocol):
    """The sums of a finished step."""

    def fraction(self, name: str) -> tuple[float, float]: ...


class RewardAverages:
    """The averages of one run; a checkpoint keeps them."""

    def __init__(self, section: RewardSection) -> None:
        self._section = section
        self._sums: RewardSums | None = None
        self._num_steps = 0

    @property
    def known(self) -> bool:
        return self._sums is not None

    @property
    def kept(self) -> Mapping[str, float]:
        """What a checkpoint keeps; empty before the first R step."""
        return {} if self._sums is None else asdict(self._sums)

    def go_on_from(self, kept: Mapping[str, float]) -> None:
        """Take over the averages of a run that is resumed."""
        self._sums, self._num_steps = (RewardSums(**kept), 1) if kept else (None, 0)

    def price_of(self, sums: RewardSums) -> float:
        """λ: the fixed price, or half of the F1 that these sums say, of annotations that leave objects out too.

        An object is worth naming when its chance is above half of the F1 that can be had (Lipton et al. 2014); of the
        objects that were named, `annotation_recall` can be found right.
        """
        fixed = self._section.price
        return self.soft_f1_of(sums) / 2 if fixed is None else fixed

    def soft_f1_of(self, sums: RewardSums) -> float:
        """2 Σ quality / (named + true objects), with κ of the true ones annotated: 2κS / (κP + G)."""
        recall = self._section.annotation_recall
        return 2 * recall * sums.value / max(1e-9, recall * sums.named + sums.annotated)

    @property
    def price(self) -> float:
        return self.price_of(self._sums or RewardSums())

    @property
    def scale(self) -> float:
        """Root mean square of the advantages of a token."""
        sums = self._sums or RewardSums()
        return sqrt(sums.squares / max(1.0, sums.tokens))

    @property
    def is_noise(self) -> bool:
        """Whether advantages are so small that a step by them would follow chance."""
        return self.scale < SMALLEST_SCALE

    def begin_with(self, sums: RewardSums) -> None:
        """Serve the rest of a first step by the sums of what was gathered of it."""
        self._sums = self._sums or sums

    def follow(self, step: Fractions) -> str | None:
        """Take the sums of a finished step, if it sampled; returns what is to be told of the first one.

        What `begin_with` noted was of this step, and gives way to the whole of it.
        """
        sums = sums_of(step)
        if not sums.tokens:
            return None
        is_first, self._num_steps = self._num_steps == 0, self._num_steps + 1
        self._sums = sums if is_first or self._sums is None else self._sums.moved(sums, self._section.price_decay)
        soft_f1 = self.soft_f1_of(sums)
        if is_first and soft_f1 < SOFT_F1_OF_A_LEARNER and self._section.box_worth == "iou":
            return (
                f"sampled answers earn a soft F1 of {soft_f1:.2f}; under {SOFT_F1_OF_A_LEARNER} annotations teach more "
                "than rewards do (docs/recipes.md): give A more steps in schedule.pattern first"
            )
        return None


def sums_of(step: Fractions) -> RewardSums:
    """What a step counted under the names of section "Rewards" of docs/metrics.md."""
    value, named = step.fraction("reward/precision")
    squares, tokens = step.fraction("reward/advantage_variance")
    return RewardSums(value, named, step.fraction("reward/annotated")[0], squares, tokens)

"""The guard: a run that learns from its own answers can teach itself to ramble; this notices while it is cheap.

On the tiny model B steps alone, with both prefix knobs off, drove valid answers from 0.99 to 0.24 in 150 steps.
"""

from collections import deque
from dataclasses import dataclass

from learner.plan.schedule import Channel
from learner.reporting.step_report import StepRecord
from learner.reporting.tallies import Tallies
from shared.config.stage2 import GuardSection
from shared.errors import BoxloopError

CURE = (
    "set custom.extra.stage2_ab.prefix_structure_ce_weight: 1 and prefix_extras: drop, or give A more steps in "
    "schedule.pattern"
)


class RunLeftItsBands(BoxloopError):
    """The guard ended the run; the newest checkpoint was written before it did."""


@dataclass(frozen=True)
class Band:
    """A metric and the side on which it leaves the healthy range."""

    metric: str
    limit: float
    is_upper: bool

    def left_by(self, value: float) -> bool:
        return value > self.limit if self.is_upper else value < self.limit


class Guard:
    """Watches the answers of the last `window` B steps."""

    def __init__(self, section: GuardSection) -> None:
        self._section = section
        self._recent: deque[Tallies] = deque(maxlen=section.window)
        self._warned = False
        self._bands = (
            Band("rollout/pred_per_gt", section.pred_per_gt_max, is_upper=True),
            Band("rollout/parse_truncated_rate", section.truncated_rate_max, is_upper=True),
            Band("rollout/sample_valid_pred_rate", section.valid_rate_min, is_upper=False),
        )

    def watch(self, step: StepRecord) -> str | None:
        """Take a finished step; returns a warning when a band has just been left, None otherwise.

        Raises RunLeftItsBands instead when `action` is stop.
        """
        if not self._section.enabled or step.channel is not Channel.B:
            return None
        self._recent.append(step.tallies)
        if len(self._recent) < self._section.window:
            return None
        message = self._verdict()
        if message and self._section.action == "stop":
            raise RunLeftItsBands(message)
        news = None if self._warned else message
        self._warned = message is not None
        return news

    def _verdict(self) -> str | None:
        total = Tallies()
        for tallies in self._recent:
            total += tallies
        means = total.reduced()
        left = [band for band in self._bands if band.metric in means and band.left_by(means[band.metric])]
        if not left:
            return None
        values = ", ".join(f"{band.metric} is {means[band.metric]:.2f} (limit {band.limit:g})" for band in left)
        return f"over the last {len(self._recent)} B steps {values}; {CURE}"

"""The guard: a run that learns from its own answers can teach itself to ramble; this notices while it is cheap.

On the tiny model B steps alone, with both prefix knobs off, drove valid answers from 0.99 to 0.24 in 150 steps.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from learner.reporting.step_report import StepRecord
from shared.config.stage2 import GuardSection
from shared.errors import BoxloopError

CURE = (
    "set custom.extra.stage2_ab.prefix_structure_ce_weight: 1 and prefix_extras: drop, or give A more steps in "
    "schedule.pattern"
)


BandSums = Mapping[str, Sequence[float]]
"""Of one step that decodes: what a band's metric is a fraction of, numerator and denominator, by its name."""


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
    """Watches the answers of the last `window` steps that decode.

    Where annotations name only the share `annotation_recall` of the objects, that much more may be predicted.
    """

    def __init__(self, section: GuardSection, annotation_recall: float = 1.0) -> None:
        self._section = section
        self._recent: deque[BandSums] = deque(maxlen=section.window)
        self._warned = False
        self._bands = (
            Band("rollout/pred_per_gt", section.pred_per_gt_max / annotation_recall, is_upper=True),
            Band("rollout/parse_truncated_rate", section.truncated_rate_max, is_upper=True),
            Band("rollout/sample_sound_rate", section.valid_rate_min, is_upper=False),
        )

    @property
    def recent(self) -> list[BandSums]:
        """The window, oldest step first: what a checkpoint keeps of it."""
        return list(self._recent)

    def go_on_from(self, recent: Iterable[BandSums]) -> None:
        """Take over the window of a run that is resumed. Bands that it has left already were told then."""
        self._recent.extend(recent)
        self._warned = self._verdict() is not None

    def watch(self, step: StepRecord) -> str | None:
        """Take a finished step; returns a warning when a band has just been left, None otherwise.

        Raises RunLeftItsBands instead when `action` is stop.
        """
        if not self._section.enabled or not step.channel.decodes:
            return None
        self._recent.append({band.metric: step.tallies.fraction(band.metric) for band in self._bands})
        message = self._verdict()
        if message and self._section.action == "stop":
            raise RunLeftItsBands(message)
        news = None if self._warned else message
        self._warned = message is not None
        return news

    def _verdict(self) -> str | None:
        """What is wrong with a full window, None if nothing is."""
        if len(self._recent) < self._section.window:
            return None
        means = {band: self._mean(band.metric) for band in self._bands}
        left = [band for band, mean in means.items() if mean is not None and band.left_by(mean)]
        if not left:
            return None
        values = ", ".join(f"{band.metric} is {means[band]:.2f} (limit {band.limit:g})" for band in left)
        return f"over the last {len(self._recent)} steps that decode {values}; {CURE}"

    def _mean(self, metric: str) -> float | None:
        """A metric over the whole window; None where there was nothing to count."""
        sums = [step.get(metric, (0.0, 0.0)) for step in self._recent]  # a checkpoint of before may lack a band
        numerator, denominator = map(sum, zip(*sums, strict=True))
        return numerator / denominator if denominator else None

"""Where a run says how it goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from learner.detection.vocabulary import CoordinateVocabulary
from learner.plan.progress import Progress
from learner.reporting.collapse_guard import Guard
from learner.reporting.monitor import Monitor
from learner.reporting.sinks import Sinks
from learner.reporting.trackers import Tracker, trackers_for
from shared.config.models import Config


@dataclass(frozen=True)
class Reporting:
    """The log and its trackers, the dumps of samples, and the guard that watches the answers."""

    sinks: Sinks
    monitor: Monitor
    guard: Guard


@contextmanager
def open_reporting(
    config: Config,
    folder: Path,
    progress: Progress,
    guard: Guard,
    vocabulary: CoordinateVocabulary,
    metrics: Tracker,
    console: Console,
) -> Iterator[Reporting]:
    """Go on with the logs in `folder` from where `progress` stands; `metrics` is sent all that trackers are sent."""
    training = config.training
    trackers = (metrics, *trackers_for(training, config.model_dump(mode="json"), folder, progress.step))
    monitor = Monitor(config.rollout.monitor_dump, folder / "pictures", vocabulary, progress.step)
    with Sinks(
        folder,
        console,
        progress,
        training.logging_steps,
        log_first=training.logging_first_step,
        trackers=trackers,
    ) as sinks:
        yield Reporting(sinks, monitor, guard)

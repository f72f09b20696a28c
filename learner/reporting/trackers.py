"""Trackers: TensorBoard and Weights & Biases are sent the numbers of `logging.jsonl` (`training.report_to`)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from shared.config.training import TrainingSection
from shared.errors import ConfigError
from shared.extras import cure_for, is_installed

PROJECT = "boxloop"
"""The project of Weights & Biases, unless WANDB_PROJECT names another."""


class Tracker(Protocol):
    """Where records go besides the log. Steps are finished optimizer steps and never fall."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def check_trackers(training: TrainingSection) -> None:
    """Raise ConfigError for a tracker whose package is not installed; nothing is imported."""
    for name in training.report_to:
        if name != "none" and not is_installed(name):
            raise ConfigError(f"training.report_to: {name} is not installed; {cure_for(name)}, or set none")


def trackers_for(
    training: TrainingSection, values: Mapping[str, Any], folder: Path, resumed_at: int
) -> tuple[Tracker, ...]:
    """Open the trackers of a run that logs into `folder` and goes on after `resumed_at` finished steps.

    `values` is the whole configuration, for a tracker that keeps it beside the curves.
    """
    trackers: list[Tracker] = []
    if "tensorboard" in training.report_to:
        trackers.append(TensorBoardTracker(folder / "tensorboard", resumed_at))
    if "wandb" in training.report_to:
        trackers.append(WandbTracker(folder, training.output_dir.resolve().name, values))
    return tuple(trackers)


class TensorBoardTracker:
    """Event files in `folder`. What a killed run wrote behind the step it is resumed at is hidden."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_at + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases, with the whole configuration. WANDB_MODE=offline keeps it in `folder`."""

    def __init__(self, folder: Path, name: str, values: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            dir=str(folder),
            config=dict(values),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()

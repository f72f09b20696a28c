"""Trackers hold the numbers that the log has."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learner.reporting.trackers import TensorBoardTracker, WandbTracker, check_trackers, trackers_for
from shared.config.models import Config
from shared.errors import ConfigError


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve that TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def test_tensorboard_shows_what_was_written_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tracking")
    killed = TensorBoardTracker(tmp_path, resumed_at=0)
    for step in (1, 2, 3):
        killed.write(step, {"loss": 8.0 / step, "rollout/recall": 0.5})
    killed.close()
    assert scalars(tmp_path) == {
        "loss": [(1, 8.0), (2, 4.0), (3, pytest.approx(8 / 3))],
        "rollout/recall": [(1, 0.5), (2, 0.5), (3, 0.5)],
    }
    resumed = TensorBoardTracker(tmp_path, resumed_at=2)
    resumed.write(3, {"loss": 0.25})
    resumed.close()
    assert scalars(tmp_path)["loss"] == [(1, 8.0), (2, 4.0), (3, 0.25)]


@pytest.mark.slow
def test_wandb_keeps_a_run_without_a_network(
    config_of: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs the extra tracking")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = WandbTracker(tmp_path, "run", config_of().model_dump(mode="json"))
    tracker.write(1, {"loss": 8.0})
    tracker.close()
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = kept.read_bytes()
    assert b"loss" in content
    assert b"learning_rate" in content, "the configuration is kept with the run"


def test_wandb_is_told_where_a_run_writes_and_how_it_is_configured(
    config_of: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=told.update))  # runs without the extra
    config = config_of("training.report_to=wandb")
    (tracker,) = trackers_for(config.training, config.model_dump(mode="json"), tmp_path, resumed_at=0)
    assert isinstance(tracker, WandbTracker)
    assert (told["name"], told["dir"]) == (config.training.output_dir.name, str(tmp_path))
    assert told["config"]["model"]["model"] == config.model.model


def test_a_tracker_that_is_not_installed_is_told_with_its_extra(
    config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("training.report_to=[tensorboard]")
    monkeypatch.setattr("learner.reporting.trackers.is_installed", lambda module: False)
    with pytest.raises(ConfigError, match=r"training.report_to: tensorboard .*pip install 'boxloop\[tracking\]'"):
        check_trackers(config.training)


def test_without_trackers_nothing_is_opened_and_no_package_asked_for(
    config_of: Callable[..., Config], tmp_path: Path
) -> None:
    config = config_of("training.report_to=none")
    check_trackers(config.training)
    assert trackers_for(config.training, config.model_dump(mode="json"), tmp_path, resumed_at=0) == ()
    assert list(tmp_path.glob("tensorboard")) == []

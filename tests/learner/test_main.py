"""How the learner's process ends."""

from collections.abc import Callable
from pathlib import Path

import pytest

from learner.__main__ import main
from shared.config.load import load_config
from shared.config.models import Config


@pytest.fixture
def config_file(config_of: Callable[..., Config], tmp_path: Path) -> Path:
    config_of()
    return tmp_path / "config.yaml"


def test_a_wrong_key_ends_with_2_before_anything_is_written(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config_file), "training.learning_rat=1"]) == 2
    assert "did you mean `training.learning_rate`" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_missing_data_ends_with_2_and_the_config_is_kept(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config_file), "training.max_steps=7"]) == 2
    assert "none.jsonl" in capsys.readouterr().out
    assert load_config(tmp_path / "run" / "config.resolved.yaml").training.max_steps == 7


def test_nothing_to_resume_ends_with_2(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config_file), "training.resume_from_checkpoint=true"]) == 2
    assert "holds no whole checkpoint" in capsys.readouterr().out


def test_evaluation_without_records_ends_with_2(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config_file), "--evaluate"]) == 2
    assert "custom.val_jsonl" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_run_that_decodes_without_a_server_ends_with_2(
    config_file: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config_file), f"custom.train_jsonl={shapes / 'train.jsonl'}"]) == 2
    assert "names no rollout server" in capsys.readouterr().out

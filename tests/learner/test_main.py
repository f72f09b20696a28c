"""How the learner's process ends."""

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from compose.supervisor import WORK_GRACE_S
from learner.__main__ import STEP_GRACE_S, main, until_signalled
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


@pytest.fixture
def ended(
    serving: Any, scripted: Any, config_of: Callable[..., Config], answers: dict[str, list[int]], shapes: Path,
    tmp_path: Path,
) -> Callable[..., Any]:  # fmt: skip
    """Train B steps beside a scripted server into a folder, doing something meanwhile; gives the exit code."""
    (tmp_path / "orders").mkdir()

    async def run(folder: Path, meanwhile: Callable[[], Any], *overrides: str) -> int:
        (tmp_path / "weights").mkdir(exist_ok=True)
        script = {"answers": answers, "orders": str(tmp_path / "orders")}
        with serving(scripted(script, weights_root=tmp_path / "weights")) as running:
            config = config_of(
                f"custom.train_jsonl={shapes / 'train.jsonl'}",
                f"custom.extra.rollout_matching.vllm.server.servers=[{{base_url: '{running.url}'}}]",
                "custom.extra.rollout_matching.max_new_tokens=100",
                "custom.extra.rollout_matching.deterministic=true",
                "custom.extra.stage2_ab.schedule.pattern=[B]",
                "training.max_steps=3",
                "training.save_steps=100",
                f"training.output_dir={folder}",
                *overrides,
            )
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(meanwhile)
                    return await until_signalled(config, Console(file=io.StringIO()))

    return run


@pytest.mark.slow
async def test_a_step_longer_than_its_grace_is_given_up_and_the_one_before_is_saved(
    ended: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.__main__.STEP_GRACE_S", 0.5)
    order, ledger = tmp_path / "orders" / "hang", tmp_path / "stopped" / "ledger.jsonl"
    signalled_at = 0.0

    async def nothing() -> None: ...

    async def stop_in_the_third_step() -> None:
        nonlocal signalled_at
        while not ledger.exists() or len(ledger.read_bytes().splitlines()) < 2:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        order.touch()
        while order.exists():  # noqa: ASYNC110 - a server takes it away
            await anyio.sleep(0.01)
        signalled_at = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)

    assert await ended(tmp_path / "stopped", stop_in_the_third_step) == 128 + signal.SIGTERM
    assert time.monotonic() - signalled_at < 15
    (saved,) = (tmp_path / "stopped").glob("checkpoint-*")
    finished = len([orjson.loads(line) for line in ledger.read_bytes().splitlines()])
    assert saved.name == f"checkpoint-{finished}"
    assert finished == 2
    assert await ended(tmp_path / "stopped", nothing, "training.resume_from_checkpoint=true") == 0
    assert await ended(tmp_path / "whole", nothing) == 0
    ours, theirs = (load_file(tmp_path / name / "checkpoint-3" / "model.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_supervisor_waits_longer_than_the_learner_takes_to_stop() -> None:
    assert WORK_GRACE_S >= STEP_GRACE_S + 60

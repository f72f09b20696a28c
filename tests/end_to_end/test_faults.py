"""Runs that cannot start, and runs that are ended from outside."""

import json
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.config.load import load_config
from tests.end_to_end.faults import PATTERN, assert_all_end
from tests.weights_folder import weights_of

pytestmark = pytest.mark.slow

LONG = (
    "training.max_steps=100000",
    "training.save_steps=100000",
    "training.eval_on_start=false",
    "training.eval_strategy=no",
)


@pytest.fixture
def bare_config(config_for: Callable[[Path, Path], Path], checkpoint: Path, tmp_path: Path) -> Path:
    """A configuration over an untrained model, for runs that never get to learn anything."""
    return config_for(tmp_path, checkpoint)


def test_an_unknown_key_is_told_with_the_nearest_known_one(start, bare_config: Path) -> None:
    run = start("up", f"config={bare_config}", "custom.extra.stage2_ab.n_softctx_iters=3")
    assert run.end() == 2
    assert "custom.extra.stage2_ab.n_softctx_iters" in run.told
    assert "did you mean `custom.extra.stage2_ab.n_softctx_iter`" in run.told
    assert not run.folder.exists()


def test_a_broken_line_is_told_with_its_file_and_number(start, bare_config: Path, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(shapes / "images")
    first, second, *_ = (shapes / "train.jsonl").read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([first, second[:-9], first]))
    run = start("train", "--config", bare_config, f"custom.train_jsonl={broken}")
    assert run.end() == 2
    assert "broken.jsonl:2" in run.told
    assert "Traceback" not in run.told


def test_a_missing_image_is_told_with_its_record_and_path(start, bare_config: Path, tmp_path: Path) -> None:
    (tmp_path / "gone.jsonl").write_text(json.dumps({"images": ["none.png"], "width": 9, "height": 9, "objects": []}))
    run = start("train", "--config", bare_config, f"custom.train_jsonl={tmp_path / 'gone.jsonl'}")
    assert run.end() == 2
    assert "gone.jsonl:1" in run.told
    assert "none.png" in run.told
    assert "Traceback" not in run.told


def test_a_folder_without_weights_is_told_before_anything_starts(
    start, bare_config: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copy(checkpoint / "config.json", tmp_path / "empty")
    run = start("up", f"config={bare_config}", "server_port=0", f"model.model={tmp_path / 'empty'}")
    assert run.end() == 2, run.told
    assert f"model.model: {tmp_path / 'empty'} holds no *.safetensors" in run.told
    assert not run.folder.exists()


def test_a_server_that_cannot_load_its_model_gives_3_and_its_reason(
    start, bare_config: Path, checkpoint: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["hidden_size"] *= 2
    (other / "config.json").write_text(json.dumps(config))
    run = start("up", f"config={bare_config}", "server_port=0", f"model.model={other}")
    assert run.end() == 3, run.told
    assert "server-0.log" in run.told
    assert f"model.model {other} cannot be loaded: " in run.told.replace("\n", "")
    assert not (run.folder / "learner.log").exists()
    assert run.pids() == []


def test_a_server_that_is_not_ready_in_time_gives_3(start, bare_config: Path) -> None:
    run = start("up", f"config={bare_config}", "server_port=0", "wait_timeout=0.1", "wait_interval=0.05")
    assert run.end() == 3, run.told
    assert "wait_timeout" in run.told
    assert run.pids() == []


def test_a_taken_port_is_told_before_anything_starts(start, bare_config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = start("up", f"config={bare_config}", f"server_port={port}")
        assert run.end() == 2, run.told
    assert f"127.0.0.1:{port}" in run.told
    assert not run.folder.exists()


def starting(run) -> bool:
    return (run.folder / "server-0.log").exists() and len(run.pids()) >= 2


def stepping(run) -> bool:
    return len(run.log()) >= 2


@pytest.mark.parametrize(
    ("number", "code", "pattern", "moment"),
    [
        (signal.SIGTERM, 143, "[B]", starting),
        (signal.SIGKILL, -9, "[B]", starting),
        (signal.SIGINT, 130, "[A]", stepping),
        (signal.SIGKILL, -9, "[A]", stepping),
    ],
    ids=lambda value: getattr(value, "name", None) or getattr(value, "__name__", str(value)),
)
def test_a_signal_ends_every_process_of_the_run(
    start, bare_config: Path, number: signal.Signals, code: int, pattern: str, moment
) -> None:
    """In a B step: test_learner_faults.py."""
    run = start("up", f"config={bare_config}", "server_port=0", f"{PATTERN}={pattern}", *LONG)
    run.wait_for(lambda: moment(run))
    run.process.send_signal(number)
    assert run.process.wait(120) == code
    assert_all_end(run)
    run.end()
    assert "Traceback" not in run.told
    if number != signal.SIGKILL:
        assert not weights_of(load_config(run.folder / "config.resolved.yaml")).exists()

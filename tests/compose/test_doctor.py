"""`boxloop doctor`, and what of it a launch looks at before and while it starts."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from compose.doctor import check_launch, findings_of, run_doctor, show_values, stop_at_failures
from compose.launch_plan import Launch, Work, plan_launch
from shared.config.load import load_with_origins
from shared.errors import ConfigError
from shared.findings import failed, passed, warned

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NVIDIA_SMI = "#!/bin/sh\necho '0, GPU-0, H100, 81559, 10'\n"


@pytest.fixture
def config_file(checkpoint: Path, shapes: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    values = {
        "global_max_length": 512,
        "model": {"model": str(checkpoint)},
        "training": {"output_dir": str(tmp_path / "run")},
        "custom": {
            "trainer_variant": "stage2_ab_training",
            "train_jsonl": str(shapes / "train.jsonl"),
            "extra": {
                "stage2_ab": {"schedule": {"pattern": ["A", "A", "B"]}},
                "rollout_matching": {"rollout_backend": "hf", "max_new_tokens": 64},
            },
        },
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def doctor(config_file: Path) -> Callable[..., tuple[int, str]]:
    """Run the doctor's command: exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "compose", "doctor", "--config", str(config_file), "--server-port", "0"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_a_good_run_passes_every_check(doctor, config_file: Path) -> None:
    code, told = doctor("training.seed=3", "server_gpus=", "train_gpus=", "--verbose")
    assert code == 0, told
    assert " 0 failed" in told
    for check in (
        "config",
        "launch",
        "model",
        "shared memory",
        "disk",
        "tokenizer",
        "training data",
        "lengths",
        "engine",
    ):
        assert f"pass {check} " in told
    assert "training.seed: 3  # command line" in told
    assert f"global_max_length: 512  # {config_file}:" in told
    assert "# default" not in told


@pytest.mark.slow
def test_every_failure_is_told_at_once_with_exit_code_1(doctor, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, told = doctor(
            f"--server-port={taken.getsockname()[1]}",
            f"custom.train_jsonl={tmp_path / 'none.jsonl'}",
            "global_max_length=9999",
            "custom.extra.stage2_ab.channel_b.rollout_decode_batch_size=4",
            f"custom.extra.rollout_matching.vllm.server.token_file={tmp_path / 'none'}",
        )
    assert code == 1, told
    failures = [line.split()[1] for line in told.splitlines() if line.startswith("fail ")]
    assert failures == ["launch", "training", "server", "token"]
    assert "choose another server_port" in told
    assert "none.jsonl cannot be read" in told
    assert "warn custom.extra.stage2_ab.channel_b.rollout_decode_batch_size 4 answers" in told


def test_values_that_nobody_wrote_are_shown_when_they_are_asked_for(config_file: Path) -> None:
    loaded = load_with_origins(config_file)
    for defaults in (False, True):
        console = Console(file=io.StringIO(), width=200)
        show_values(loaded, console=console, defaults=defaults)
        assert isinstance(console.file, io.StringIO)
        assert ("training.seed: 42  # default" in console.file.getvalue()) is defaults
        assert "global_max_length: 512" in console.file.getvalue()


def test_without_a_configuration_nothing_else_is_looked_at(config_file: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    assert run_doctor(Launch(config_file, ("training.learning_rat=1",)), console) == 1
    assert isinstance(console.file, io.StringIO)
    verdict, first, *rest = console.file.getvalue().splitlines()
    assert verdict == "0 passed, 0 warnings, 1 failed"
    assert first.startswith("fail config")
    assert "did you mean `training.learning_rate`" in "".join(rest)


def test_a_launch_stops_at_a_failure_and_goes_on_with_warnings(config_file: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    assert isinstance(console.file, io.StringIO)

    def check(*overrides: str) -> None:
        check_launch(plan_launch(Launch(config_file, overrides, server_port=0), Work()), Work(), console)

    check("custom.extra.rollout_matching.vllm.sync.mode=adapter")
    assert "warn custom.extra.rollout_matching.vllm.sync.mode" in console.file.getvalue()
    with pytest.raises(ConfigError, match=r"model: model.model: .* has no readable config.json"):
        check(f"model.model={tmp_path}")


def test_all_failures_are_in_one_error() -> None:
    findings = [
        failed("disk", "full", "free some"),
        passed("model", "small"),
        failed("ports", "taken"),
        warned("a", "b"),
    ]
    with pytest.raises(ConfigError) as raised:
        stop_at_failures(findings, Console(file=io.StringIO()))
    assert str(raised.value) == "disk: full → free some\nports: taken"


def test_a_preflight_that_dies_is_a_failure() -> None:
    good = passed("model", "small")
    assert findings_of("x", 0, f"a warning\n{good.model_dump_json()}\n") == [good]
    known, died = findings_of("x", 1, f"{good.model_dump_json()}\nTraceback\nMemoryError\n")
    assert known == good
    assert (died.status, died.check) == ("fail", "x")
    assert "MemoryError" in died.reason


@pytest.mark.slow
def test_bad_data_ends_a_launch_while_its_servers_still_load(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text(NVIDIA_SMI)
    smi.chmod(0o755)
    code = """
import sys
from compose import cli, launch_plan, machine, supervisor
machine.torch_view = lambda named: machine.TorchView(len(named), "torch that sees them")
real = supervisor.run_supervised
cli.run_supervised = lambda launch: real(launch, program=launch_plan.ServerProgram("fake_server"))
cli.main()
"""
    arguments = (f"config={config_file}", "server_gpus=0", "train_gpus=0", "server_port=0", "wait_timeout=60")
    done = subprocess.run(
        [sys.executable, "-c", code, "up", *arguments, f"custom.train_jsonl={tmp_path / 'none.jsonl'}"],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{HERE}",
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "FAKE_SERVER": "never_ready",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 2, done.stderr
    assert "training data: " in done.stderr
    assert "none.jsonl cannot be read" in done.stderr
    assert not (tmp_path / "run" / "learner.log").exists()


@pytest.mark.reported("ab_mixed.yaml in an empty folder")
@pytest.mark.slow
def test_what_ships_fails_in_an_empty_folder_where_neither_model_nor_data_are(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compose", "doctor", "config=configs/stage2_ab/prod/ab_mixed.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    failures = {line.split()[1] for line in told.splitlines() if line.startswith("fail ")}
    assert {"model", "checkpoint", "training"} <= failures
    verdict = next(line for line in told.splitlines() if " passed, " in line)
    assert told.index(verdict) < told.index("fail ")
    assert "# default" not in told


@pytest.mark.reported("Qwen3-VL#1111 qwen2_5_vl", "Qwen3-VL#1402 embeddings not resized")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen2_5_vl"}, "is a qwen2_5_vl checkpoint; give one of qwen3_vl"),
        ({"text_config": {"vocab_size": 700}}, "its vocabulary is 700; `boxloop init "),
    ],
)
def test_a_checkpoint_that_cannot_be_trained_is_told_by_the_learner_alone_too(
    config_file: Path, checkpoint: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (other / "config.json").write_text(json.dumps(config))
    own = ("training.output_dir=run", f"model.model={other}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    train = [sys.executable, "-m", "learner", "--config", str(config_file), *own]
    done = subprocess.run(train, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert said in done.stdout
    assert "Traceback" not in done.stderr
    if "model_type" in change:
        up = [sys.executable, "-m", "compose", "up", f"config={config_file}", *own, "server_port=0"]
        done = subprocess.run(up, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr.replace("\n", " ")
        assert not (tmp_path / "run" / "server-0.log").exists(), "it is told before anything is started"

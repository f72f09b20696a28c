"""A run of the real supervisor, in a process of its own, over small stand-ins for server and learner."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from shared.config.load import load_config
from tests.weights_folder import weights_of

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

BY_VLLM = "custom.extra.rollout_matching.rollout_backend=vllm"
STALL = "custom.extra.rollout_matching.vllm.server.stall_timeout_s"

CONFIG = """
global_max_length: 256
model: {model: MODEL}
training: {output_dir: RUN_DIR}
custom:
  trainer_variant: stage2_ab_training
  train_jsonl: train.jsonl
  extra:
    stage2_ab: {schedule: {pattern: [B]}}
    rollout_matching: {rollout_backend: hf, max_new_tokens: 64}
"""

SUPERVISE = """
import sys
from compose import cli, launch_plan, supervisor, watch
real = supervisor.run_supervised
fake = launch_plan.Work(module="fake_learner")
cli.run_supervised = lambda launch, work=fake: real(launch, work, program=launch_plan.ServerProgram("fake_server"))
supervisor.SERVER_GRACE_S = 1.0
watch.FIRST_PAUSE_S = watch.PROBE_INTERVAL_S = watch.KILL_GRACE_S = 0.2
cli.main()
"""


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(happened: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@dataclass
class SinglePass:
    """One started supervisor, the folder it writes to, and the file that holds what it said."""

    process: subprocess.Popen[bytes]
    folder: Path
    console: Path

    @property
    def told(self) -> str:
        return self.console.read_text()

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def pids(self) -> list[int]:
        """Everything that reported its pid, grandchildren too."""
        names = [path.stem for path in self.folder.glob("*.log")]
        return [int(pid) for name in names for pid in re.findall(r"^pid (\d+)", self.log(name), re.MULTILINE)]

    def end(self) -> int:
        return self.process.wait(120)


Start = Callable[..., SinglePass]


@pytest.fixture
def start(tmp_path: Path, checkpoint: Path) -> Iterator[Start]:
    """Start `boxloop up` on a CPU with `key=value` arguments; environment by keyword."""
    started: list[SinglePass] = []

    def run(*arguments: str, serve: bool = False, **environment: str) -> SinglePass:
        folder = tmp_path / "run"
        config = tmp_path / "config.yaml"
        config.write_text(CONFIG.replace("RUN_DIR", str(folder)).replace("MODEL", str(checkpoint)))
        up = ("up", f"config={config}", "server_port=0", "wait_interval=0.1")
        command = ("serve", "--config", str(config), "--port", "0") if serve else up
        console = tmp_path / f"console-{len(started)}.txt"
        with console.open("wb") as told:
            process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISE, *command, *arguments],
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "COLUMNS": "200", **environment},
                stdout=told,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(SinglePass(process, folder, console))
        return started[-1]

    yield run
    for supervised in started:
        left = [pid for pid in supervised.pids() if is_running(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if supervised.process.poll() is None:
            supervised.process.kill()
            supervised.process.wait()


def stopped_at(text: str) -> float:
    return float(re.findall(r"^stopped ([\d.]+)", text, re.MULTILINE)[0])


def assert_nothing_is_left(run: SinglePass, at_least: int) -> None:
    pids = run.pids()
    assert len(pids) >= at_least
    wait_for(lambda: not any(is_running(pid) for pid in pids))


def test_a_run_that_ends_well_gives_0_and_leaves_nothing(start: Start) -> None:
    run = start("training.seed=7", HTTP_PROXY="http://proxy.invalid:1", FAKE_SECONDS="0.3")
    assert run.end() == 0, run.told
    learner = run.log("learner")
    address = re.findall(r"servers=(\[.*?\])", learner)[0]
    port = re.findall(r"--port (\d+)", run.log("server-0"))[0]
    assert yaml.safe_load(address) == [{"base_url": f"http://127.0.0.1:{port}"}]
    assert "proxy None" in learner
    assert int(re.findall(r"token (\d+)", learner)[0]) >= 32
    assert "a warning" in learner
    assert "a warning" in run.told
    assert yaml.safe_load((run.folder / "config.resolved.yaml").read_text())["training"]["seed"] == 7
    assert_nothing_is_left(run, at_least=3)


def test_shared_memory_is_freed_at_the_end(start: Start) -> None:
    run = start(FAKE_SECONDS="300")
    wait_for(lambda: "argv" in run.log("learner"))
    folder = weights_of(load_config(run.folder / "config.resolved.yaml"))
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(b"0")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143, run.told
    assert not folder.exists()


def test_several_servers_share_the_gpus_and_stop_in_reverse_order(start: Start) -> None:
    run = start("cpu_servers=2", FAKE_SECONDS="300", OMP_NUM_THREADS="1")
    wait_for(lambda: "argv" in run.log("learner"))
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143, run.told
    times = [stopped_at(run.log(name)) for name in ("learner", "server-1", "server-0")]
    assert times == sorted(times)
    assert_nothing_is_left(run, at_least=5)


def test_servers_alone_run_and_are_restarted_until_a_signal(start: Start) -> None:
    run = start("--gpus", "0,1", serve=True, OMP_NUM_THREADS="1")
    wait_for(lambda: all(f"server-{place}: ready" in run.told for place in range(2)) and len(run.pids()) == 4)
    ports = [re.findall(r"--port (\d+)", run.log(f"server-{place}"))[0] for place in range(2)]
    announced = run.folder / "servers.json"
    assert json.loads(announced.read_text()) == [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
    os.kill(int(re.findall(r"^pid (\d+)", run.log("server-0"), re.MULTILINE)[0]), signal.SIGKILL)
    wait_for(lambda: len(run.pids()) == 6)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143
    assert "server-0 died with code -9; restart 1 of 3" in run.told
    assert not announced.exists()
    assert_nothing_is_left(run, at_least=6)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_waiting_for_the_servers_ends_everything(start: Start, number: int, code: int) -> None:
    run = start(FAKE_SERVER="never_ready")
    wait_for(lambda: len(run.pids()) == 2)
    run.process.send_signal(number)
    assert run.end() == code, run.told
    assert_nothing_is_left(run, at_least=2)


def test_a_killed_supervisor_takes_its_children_along(start: Start) -> None:
    run = start(FAKE_SECONDS="300")
    wait_for(lambda: len(run.pids()) == 3)
    run.process.kill()
    run.process.wait()
    assert_nothing_is_left(run, at_least=3)


def test_a_server_that_ignores_sigterm_is_killed_with_its_group(start: Start) -> None:
    run = start(FAKE_SERVER="deaf")
    assert run.end() == 0, run.told
    assert_nothing_is_left(run, at_least=3)


def test_a_server_that_is_never_ready_gives_3_and_says_what_it_waits_for(start: Start) -> None:
    run = start("wait_timeout=1.5", FAKE_SERVER="never_ready")
    assert run.end() == 3, run.told
    assert "server-0: waiting for engine (loading)" in run.told
    assert "wait_timeout" in run.told
    assert not run.log("learner")
    assert_nothing_is_left(run, at_least=2)


def test_a_server_that_dies_at_start_gives_3_and_the_end_of_its_log(start: Start) -> None:
    run = start(FAKE_SERVER="dies_at_start")
    assert run.end() == 3, run.told
    assert "the model folder is empty" in run.told
    assert "server-0.log" in run.told


def test_a_server_that_dies_is_started_again_on_its_port(start: Start) -> None:
    run = start(FAKE_SERVER="dies_once", FAKE_SECONDS="300")
    wait_for(lambda: "server-0: ready again" in run.told)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143, run.told
    assert "server-0 died with code 9; restart 1 of 3 in 0.2 s" in run.told
    assert "out of memory" in run.told
    ports = re.findall(r"--port (\d+)", run.log("server-0"))
    assert len(ports) == 2
    assert len(set(ports)) == 1
    assert_nothing_is_left(run, at_least=5)


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("fails_once", "has failed: engine (no token for 9 s)"),
        ("freezes_once", "has not answered for"),
    ],
)
def test_a_server_that_is_of_no_use_is_killed_and_started_again(start: Start, mode: str, why: str) -> None:
    run = start(f"{STALL}=1", FAKE_SERVER=mode, FAKE_SECONDS="300")
    wait_for(lambda: len(re.findall("argv", run.log("server-0"))) >= 2)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143
    assert f"server-0 {why}" in run.told
    assert "restart 1 of 3" in run.told
    assert_nothing_is_left(run, at_least=4)


def test_a_server_that_keeps_dying_is_given_up_and_without_one_the_run_ends(start: Start) -> None:
    run = start("max_restarts=1", FAKE_SERVER="dies_later", FAKE_SECONDS="300")
    assert run.end() == 1, run.told
    assert "restart 1 of 1" in run.told
    assert "server-0 died with code 9; it stays down (max_restarts 1)" in run.told
    assert "out of memory" in run.told
    assert_nothing_is_left(run, at_least=5)


def test_a_run_goes_on_with_the_servers_that_are_left(start: Start) -> None:
    run = start(
        "max_restarts=0",
        "cpu_servers=2",
        FAKE_SERVER="dies_once",
        FAKE_SECONDS="300",
        OMP_NUM_THREADS="1",
    )
    wait_for(lambda: "died" in run.told)
    time.sleep(1)  # long enough to end the run, if it did
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143, run.told
    assert len(re.findall(r"server-\d died with code 9; it stays down \(max_restarts 0\)", run.told)) == 1


def test_what_a_killed_run_left_in_shared_memory_goes_when_the_next_one_starts(start: Start) -> None:
    run = start(FAKE_SECONDS="300")
    wait_for(lambda: "argv" in run.log("learner"))
    folder = weights_of(load_config(run.folder / "config.resolved.yaml"))
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(b"0")
    run.process.kill()
    run.process.wait()
    assert (folder / "weights").exists()
    assert start(FAKE_SECONDS="0").end() == 0
    assert not folder.exists()


@pytest.mark.parametrize(("code", "expected"), [("1", 1), ("2", 2), ("77", 1)])
def test_a_learner_that_fails_decides_the_exit_code(start: Start, code: str, expected: int) -> None:
    run = start(FAKE_CODE=code)
    assert run.end() == expected, run.told
    assert "learner.log" in run.told
    assert_nothing_is_left(run, at_least=3)


@pytest.mark.reported("torchtune#481 deepinv#525 two supervisors")
def test_a_second_run_in_the_same_folder_is_refused_and_loses_nothing(start: Start) -> None:
    first = start(FAKE_SECONDS="300")
    wait_for(lambda: "argv" in first.log("learner"))
    files = {path: path.read_bytes() for path in first.folder.rglob("*.yaml")}
    second = start()
    assert second.end() == 2, second.told
    told = second.told.replace("\n", " ")
    assert f"process {first.process.pid} on {socket.gethostname()}" in told
    assert {path: path.read_bytes() for path in first.folder.rglob("*.yaml")} == files
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 143, first.told
    assert start(FAKE_SECONDS="0").end() == 0


@pytest.mark.reported("trl#3872 up")
@pytest.mark.parametrize("place", ["run", "run/below"])
def test_a_folder_that_is_a_file_is_one_line_and_2(start: Start, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    run = start(f"training.output_dir={tmp_path / place.replace('run', 'file')}")
    assert run.end() == 2
    assert "Traceback" not in run.told
    assert "output folder: training.output_dir: " in run.told


@pytest.mark.reported("server_gpus=0 train_gpus=1 without a GPU")
def test_gpus_that_are_not_usable_end_it_with_what_torch_and_the_driver_said(start: Start) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be GPUs")
    run = start("server_gpus=0", "train_gpus=1")
    assert run.end() == 2
    assert "0, 1 asked for, and there is no nvidia-smi; torch 2" in run.told


def test_a_taken_port_is_told_before_anything_starts(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = start(f"server_port={port}")
        assert run.end() == 2, run.told
    assert f"127.0.0.1:{port}" in run.told
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["custom.extra.rollout_matching.vllm.server.servers=[{base_url: http://a:1}, {base_url: http://b:1}]"],
            "names 2",
        ),
        (["server_gpus=0,1,2", "server_tp=2", BY_VLLM], "give a multiple"),
        (["max_restarts=often"], "max_restarts=often"),
        (["training.sed=1"], "did you mean `training.seed`"),
        (["wait_timeout=soon"], "wait_timeout=soon"),
    ],
)
def test_wrong_arguments_give_2(start: Start, arguments: list[str], said: str) -> None:
    run = start(*arguments)
    assert run.end() == 2, run.told
    assert said in run.told
    assert "Traceback" not in run.told


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_took_a_step_leaves_a_report_however_it_ended(start: Start, tmp_path: Path, code: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logging.jsonl").write_text('{"step": 1, "channel": "A", "loss": 2.5}\n')
    run = start(FAKE_CODE=str(code))
    assert run.end() == code
    assert "2.5" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_that_took_no_step_leaves_none(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logging.jsonl").write_text('{"step": 0, "eval_rollout_f1_iou50": 0.5}\n')
    run = start(FAKE_CODE="1")
    assert run.end() == 1
    assert not (tmp_path / "run" / "report.html").exists()
    assert "logging.jsonl" not in run.told

"""A whole server process with real vLLM: what is left when one of its two processes is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Started:
    """A server process that is ready at `url`, and its folder for temporary files: one whose path fits sockets."""

    process: subprocess.Popen[str]
    sockets: Path
    url: str


@pytest.fixture(scope="module")
def waiting(config_file_in, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Started]]:
    """A server for each test to kill; they load side by side."""
    config_file = config_file_in(tmp_path_factory.mktemp("config"))
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(TemporaryDirectory())) for _ in range(3)]
        processes = [start(config_file, folder) for folder in folders]
        for process in processes:
            stack.callback(process.communicate)
            stack.callback(process.kill)
        yield [Started(*both, ready_url(both[0])) for both in zip(processes, folders, strict=True)]


@pytest.fixture
def started(waiting: list[Started]) -> Started:
    return waiting.pop()


def start(config_file: Path, sockets: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rollout_server", "--config", str(config_file), "--port", "0", "--engine", "vllm"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BOXLOOP_TOKEN": "", "OMP_NUM_THREADS": "1", "TMPDIR": str(sockets)},
        start_new_session=True,
    )


def wait_until(happened: Callable[[], bool], timeout_s: float = 5.0) -> float:
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < timeout_s, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


def ready_url(process: subprocess.Popen[str]) -> str:
    url = ""
    for line in process.stdout:
        url = "http://" + line.split()[-1] if line.startswith("listening") else url
        if line.startswith("ready"):
            return url
    raise AssertionError(process.communicate()[1])


def core_of(process: subprocess.Popen[str]) -> psutil.Process:
    (core,) = psutil.Process(process.pid).children()
    return core


def assert_the_death_is_told(process: subprocess.Popen[str], url: str, killed_at: float) -> None:
    """By /health/ with the reason, at most five seconds after it, and then by the exit code."""
    wait_until(lambda: httpx.get(f"{url}/health/", trust_env=False).status_code == 503)
    health = httpx.get(f"{url}/health/", trust_env=False)
    assert time.monotonic() - killed_at < 5
    assert (health.status_code, "vLLM's engine process has died" in health.text) == (503, True)
    assert process.wait(8) == 1
    assert "EngineFailed: vLLM's engine process has died" in process.communicate()[1]


def test_a_killed_engine_core_is_told_by_streams_health_and_exit_code(started: Started, prompts) -> None:
    process, url = started.process, started.url
    body = prompts.batch("a", "b", sampling=prompts.sampling(200)).model_dump_json()
    with httpx.stream("POST", f"{url}/rollouts", content=body, trust_env=False, timeout=30) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines))["type"] == "header"
        killed_at = time.monotonic()
        core_of(process).kill()
        said = [json.loads(line) for line in lines]
    assert {line["uid"]: line.get("code") for line in said if "uid" in line} == dict.fromkeys("ab", "engine_died")
    assert_the_death_is_told(process, url, killed_at)
    assert not list(started.sockets.glob("vllm-*"))


def test_an_engine_core_that_is_killed_without_work_is_told_too(started: Started) -> None:
    killed_at = time.monotonic()
    core_of(started.process).kill()
    assert_the_death_is_told(started.process, started.url, killed_at)


def test_a_killed_server_leaves_no_engine_core_and_no_sockets(started: Started) -> None:
    core = core_of(started.process)
    assert list(started.sockets.glob("vllm-*"))
    started.process.kill()
    wait_until(lambda: not core.is_running() or core.status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: not list(started.sockets.glob("vllm-*")))

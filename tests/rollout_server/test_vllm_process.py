"""A whole server process with real vLLM: what is left when one of its two processes is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for sockets."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def process(config_file: Path, sockets: Path) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-m", "rollout_server", "--config", str(config_file), "--port", "0", "--engine", "vllm"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BOXLOOP_TOKEN": "", "OMP_NUM_THREADS": "1", "TMPDIR": str(sockets)},
        start_new_session=True,
    )
    yield started
    started.kill()
    started.communicate()


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


def test_a_killed_engine_core_is_told_by_streams_health_and_exit_code(
    process: subprocess.Popen[str], prompts, sockets: Path
) -> None:
    url = ready_url(process)
    body = prompts.batch("a", "b", sampling=prompts.sampling(200)).model_dump_json()
    with httpx.stream("POST", f"{url}/rollouts", content=body, trust_env=False, timeout=30) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines))["type"] == "header"
        killed_at = time.monotonic()
        core_of(process).kill()
        said = [json.loads(line) for line in lines]
    assert {line["uid"]: line.get("code") for line in said if "uid" in line} == dict.fromkeys("ab", "engine_died")
    assert_the_death_is_told(process, url, killed_at)
    assert not list(sockets.glob("vllm-*"))


def test_an_engine_core_that_is_killed_without_work_is_told_too(process: subprocess.Popen[str]) -> None:
    url = ready_url(process)
    killed_at = time.monotonic()
    core_of(process).kill()
    assert_the_death_is_told(process, url, killed_at)


def test_a_killed_server_leaves_no_engine_core_and_no_sockets(process: subprocess.Popen[str], sockets: Path) -> None:
    ready_url(process)
    core = core_of(process)
    assert list(sockets.glob("vllm-*"))
    process.kill()
    wait_until(lambda: not core.is_running() or core.status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: not list(sockets.glob("vllm-*")))

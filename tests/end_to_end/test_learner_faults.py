"""Learners that are killed, asked to stop, or have no disk left: what was learned stays, and a resumed run goes on."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.faults import (
    NUM_STEPS,
    PER_STEP,
    QUIET,
    RESUMED,
    ROLLOUT,
    SCRIPTED_RUN,
    assert_all_end,
    assert_each_record_was_learned_once,
    assert_nothing_happened,
    decoding,
    differing,
)
from tests.end_to_end.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.slow

EVALUATED = ("training.eval_strategy=steps", "training.eval_steps=2")
UP_KEYS = ("server_port=0", "wait_interval=0.1")


@contextmanager
def lasting_server(config: Path, *arguments: str) -> Iterator[str]:
    """The address of a server that outlives its learners."""
    command = [sys.executable, "-m", "rollout_server", "--config", str(config), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        assert "ready" in process.stdout.readline()
        yield f"http://{address}"
    finally:
        process.kill()
        process.communicate()


class Learners:
    """Learners of one configuration that work with one server, one after another."""

    def __init__(self, process: subprocess.Popen[str], config: Path, server: str, keys: tuple[str, ...]) -> None:
        servers = f"{ROLLOUT}.vllm.server.servers=[{{base_url: '{server}'}}]"
        self._process, self._server = process, server
        self._arguments = ["--config", str(config), servers, *(key for key in keys if key not in UP_KEYS)]
        self._checkpoints = config.parent / "run"

    def run(self, phase: str, times: int, *overrides: str) -> int:
        """The exit code of one that is killed in that phase, or that is not; it resumes if there is a checkpoint."""
        resumed = [RESUMED] if list(self._checkpoints.glob("checkpoint-*")) else []
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps([phase, times, [*self._arguments, *overrides, *resumed]]), file=self._process.stdin, flush=True
        )
        assert select.select([self._process.stdout], [], [], 120)[0], "the learner hangs"
        return int(self._process.stdout.readline())

    def kill(self, phase: str, times: int, *overrides: str) -> None:
        """Let one run into its death, and see that the server frees the work that it had for it."""
        assert self.run(phase, times, *overrides) == -signal.SIGKILL, phase
        deadline = time.monotonic() + 60
        while "boxloop_server_open_samples 0.0" not in httpx.get(f"{self._server}/metrics", trust_env=False).text:
            assert time.monotonic() < deadline, "the work of a dead learner stays in the engine"
            time.sleep(0.05)


@contextmanager
def learners(config: Path, server: str, keys: tuple[str, ...], log: Path) -> Iterator[Learners]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.end_to_end.forked_learners", str(log)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield Learners(process, config, server, keys)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_learner_that_is_killed_in_any_phase_resumes_to_the_same_weights(
    config_for: Callable[[Path, Path], Path], checkpoint: Path, script_of, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "script.json").write_text(json.dumps(script_of()))
    config, log, run = config_for(tmp_path, checkpoint), tmp_path / "learner.log", tmp_path / "run"
    played = ("--engine", "scripted", "--script", str(tmp_path / "script.json"))
    with lasting_server(config, *played) as server, learners(config, server, SCRIPTED_RUN, log) as each:
        for phase, times in (("encode", 3), ("update", 1), ("rename", 1)):
            each.kill(phase, times)
            assert not list(run.glob("checkpoint-*"))
        each.kill("save", 2)  # of step 4
        for phase in ("compute", "snapshot", "prepare", "publish", "decode", "compute_b"):
            each.kill(phase, 2 if phase == "decode" else 1)
        each.kill("evaluation", 2, *EVALUATED)
        each.kill("ledger", 1)
        assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
        assert each.run("", 0) == 0, log.read_text()
    assert_each_record_was_learned_once(run, NUM_STEPS, PER_STEP)
    assert differing(run / f"checkpoint-{NUM_STEPS}", undisturbed) == []
    assert not list(run.glob(".*partial"))
    assert "Traceback" not in log.read_text()


def test_a_learner_that_is_killed_while_transformers_decodes_or_loads_resumes_to_the_same_weights(
    six_steps, config_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    config, log, run = config_of(tmp_path), tmp_path / "learner.log", tmp_path / "run"
    with lasting_server(config) as server, learners(config, server, QUIET, log) as each:
        each.kill("decode", 2)
        each.kill("publish", 2)
        assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
        assert each.run("", 0) == 0, log.read_text()
    assert_each_record_was_learned_once(run, 6, 6)
    assert differing(run / "checkpoint-6", six_steps.folder / "checkpoint-6") == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def test_a_run_that_is_killed_has_no_disk_and_is_asked_to_stop_is_resumed_to_the_same_weights(
    scripted_up, disk: SmallDisk, undisturbed: Path
) -> None:
    killed = scripted_up(folder=disk.folder)
    killed.wait_for(lambda: (killed.folder / "checkpoint-2").exists() and decoding(killed))
    killed.process.kill()
    assert killed.end() == -signal.SIGKILL
    assert_all_end(killed)

    full = scripted_up(RESUMED, folder=disk.folder)
    full.wait_for(lambda: decoding(full))
    disk.fill(full)
    assert full.end() == 1, full.told
    assert re.search(rf"checkpoint-4 cannot be written: .*{disk.says}.*It needs about \d+\.\d MiB", full.told)
    assert "learner failed with code 1" in full.told
    assert "Traceback" not in full.told
    assert [path.name for path in full.folder.glob("*checkpoint-*")] == ["checkpoint-2"]
    assert full.pids() == []
    disk.free()

    stopped = scripted_up(RESUMED, "training.save_steps=100", folder=disk.folder)
    stopped.wait_for(lambda: decoding(stopped))
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.end() == 128 + signal.SIGTERM, stopped.told
    assert "SIGTERM: the running step has 20 s to end" in stopped.told
    assert (stopped.folder / "checkpoint-4").exists()
    assert_each_record_was_learned_once(stopped.folder, 4, PER_STEP)

    last = scripted_up(RESUMED, folder=disk.folder)
    assert last.end() == 0, last.told
    assert_nothing_happened(last, undisturbed)

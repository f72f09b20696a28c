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

from compose.launch_plan import ServerProgram
from tests.end_to_end.disturbed_run import program_of
from tests.end_to_end.faults import (
    NUM_STEPS,
    PER_STEP,
    RESUMED,
    ROLLOUT,
    SHORT_RUN,
    assert_all_end,
    assert_each_record_was_learned_once,
    assert_nothing_happened,
    decoding,
    differing,
)
from tests.end_to_end.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.slow

EVALUATED = ("training.eval_strategy=steps", "training.eval_steps=2")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
UP_KEYS = ("server_port=0", "wait_interval=0.1")


@contextmanager
def lasting_server(config: Path, program: ServerProgram) -> Iterator[str]:
    """The address of a server that outlives its learners."""
    command = [sys.executable, "-m", program.module, "--config", str(config), "--port", "0", *program.arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ONE_THREAD)
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
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ONE_THREAD, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield Learners(process, config, server, keys)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_learner_that_is_killed_in_any_phase_resumes_to_the_same_weights(
    engine: str, config_of: Callable[[Path], Path], script_of, undisturbed: Path, tmp_path: Path
) -> None:
    config, script, log, run = config_of(tmp_path), tmp_path / "script.json", tmp_path / "learner.log", tmp_path / "run"
    script.write_text(json.dumps(script_of(seconds_per_token=0)))
    program = program_of(engine, str(script))
    with lasting_server(config, program) as server, learners(config, server, SHORT_RUN, log) as each:
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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.very_slow
def test_a_run_that_is_killed_has_no_disk_and_is_asked_to_stop_is_resumed_to_the_same_weights(
    up, disk: SmallDisk, undisturbed: Path
) -> None:
    killed = up(folder=disk.folder)
    killed.wait_for(lambda: (killed.folder / "checkpoint-2").exists() and decoding(killed))
    killed.process.kill()
    assert killed.end() == -signal.SIGKILL
    assert_all_end(killed)

    full = up(RESUMED, folder=disk.folder)
    full.wait_for(lambda: decoding(full))
    disk.fill(full)
    assert full.end() == 1, full.told
    assert re.search(rf"checkpoint-4 cannot be written: .*{disk.says}.*It needs about \d+\.\d MiB", full.told)
    assert "learner failed with code 1" in full.told
    assert "Traceback" not in full.told
    assert [path.name for path in full.folder.glob("*checkpoint-*")] == ["checkpoint-2"]
    assert full.pids() == []
    disk.free()

    stopped = up(RESUMED, "training.save_steps=100", folder=disk.folder)
    stopped.wait_for(lambda: decoding(stopped))
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.end() == 128 + signal.SIGTERM, stopped.told
    assert "SIGTERM: the running step has 20 s to end" in stopped.told
    assert (stopped.folder / "checkpoint-4").exists()
    assert_each_record_was_learned_once(stopped.folder, 4, PER_STEP)

    last = up(RESUMED, folder=disk.folder)
    assert last.end() == 0, last.told
    assert_nothing_happened(last, undisturbed)

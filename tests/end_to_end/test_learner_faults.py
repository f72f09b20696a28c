"""Learners that are killed, asked to stop, or have no disk left: what was learned stays, and a resumed run goes on."""

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.faults import (
    NUM_STEPS,
    PATTERN,
    PER_STEP,
    QUIET,
    ROLLOUT,
    SCRIPTED_RUN,
    assert_each_record_was_learned_once,
    differing,
)

pytestmark = pytest.mark.slow

KILLED_LEARNER = (str(Path(__file__).with_name("killed_learner.py")),)
RESUMED = "training.resume_from_checkpoint=true"


@pytest.fixture
def lasting_server(config_for, checkpoint: Path, script_of, tmp_path: Path) -> Iterator[str]:
    """The address of a scripted server that outlives its learners."""
    (tmp_path / "script.json").write_text(json.dumps(script_of()))
    arguments = ["--config", config_for(tmp_path, checkpoint), "--port", "0", "--engine", "scripted"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rollout_server", *map(str, arguments), "--script", str(tmp_path / "script.json")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().split()[-1]
    assert "ready" in process.stdout.readline()
    yield f"http://{address}"
    process.kill()
    process.communicate()


def test_a_learner_that_is_killed_in_any_phase_resumes_to_the_same_weights(
    start, lasting_server: str, config_for: Callable[[Path, Path], Path], checkpoint: Path, undisturbed: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    up_keys = ("server_port=0", "wait_interval=0.1")
    keys = [key for key in SCRIPTED_RUN if key not in up_keys]
    servers = f"{ROLLOUT}.vllm.server.servers=[{{base_url: '{lasting_server}'}}]"
    arguments = ("--config", config_for(tmp_path, checkpoint), servers, *keys)
    resume: tuple[str, ...] = ()
    for phase, times in (("update", 1), ("save", 2), ("decode", 9), ("publish", 1), ("compute", 1)):
        killed = start(phase, times, *arguments, *resume, program=KILLED_LEARNER)
        assert killed.end(60) == -signal.SIGKILL, killed.told
        resume = (RESUMED,) if (tmp_path / "run" / "checkpoint-2").exists() else ()
        if phase == "decode":
            wait_until_idle(lasting_server)
    assert resume
    last = start("never", 0, *arguments, *resume, program=KILLED_LEARNER)
    assert last.end(60) == 0, last.told
    assert_each_record_was_learned_once(last, NUM_STEPS, PER_STEP)
    assert differing(last.folder / f"checkpoint-{NUM_STEPS}", undisturbed) == []
    assert not list(last.folder.glob(".*partial"))


def wait_until_idle(server: str) -> None:
    """The server frees the work of a learner that is gone."""
    deadline = time.monotonic() + 5
    while "boxloop_server_running 0.0" not in httpx.get(f"{server}/metrics", trust_env=False).text:
        assert time.monotonic() < deadline, "the work of a dead learner stays in the engine"
        time.sleep(0.05)


def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    start, config_for, checkpoint: Path, script_of, tmp_path: Path
) -> None:
    (tmp_path / "script.json").write_text(json.dumps(script_of()))
    config = config_for(tmp_path, checkpoint)
    run = start(
        tmp_path / "script.json", f"config={config}", *SCRIPTED_RUN, f"{PATTERN}=[B]", "training.save_steps=100",
        "training.max_steps=100", program=("-m", "benchmarks.scripted_run"),
    )  # fmt: skip
    run.wait_for(lambda: len(run.log()) >= 1)
    time.sleep(0.3)
    run.process.send_signal(signal.SIGTERM)
    assert run.end(40) == 143, run.told
    assert "SIGTERM: the running step has 20 s to end" in run.told
    finished = len(run.log())
    assert finished >= 2
    assert [path.name for path in run.folder.glob("checkpoint-*")] == [f"checkpoint-{finished}"]
    assert_each_record_was_learned_once(run, finished, PER_STEP)


def test_a_full_disk_ends_the_run_with_the_older_checkpoint_whole(
    start, config_for: Callable[[Path, Path], Path], checkpoint: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path, checkpoint)
    arguments = ("train", "--config", config, *QUIET, "custom.trainer_variant=stage1_sft")
    run = start(*arguments, "training.save_steps=1", "training.max_steps=1000")
    run.wait_for(lambda: (run.folder / "checkpoint-1").exists())
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (2**20, 2**20))
    assert run.end(60) == 1, run.told
    assert re.search(r"NotWritten: .*checkpoint-\d+ cannot be written: .*It needs about \d+\.\d MiB", run.told)
    assert "Traceback" not in run.told
    newest = max(int(path.name.removeprefix("checkpoint-")) for path in run.folder.glob("checkpoint-*"))
    assert not list(run.folder.glob(".*partial"))
    resumed = start(*arguments, f"training.max_steps={newest + 1}", RESUMED)
    assert resumed.end(60) == 0, resumed.told
    assert [line["step"] for line in resumed.log("ledger.jsonl")] == list(range(1, newest + 2))

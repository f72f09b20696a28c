"""Servers that die, freeze, stall or cut their streams: the run goes on, and ends as one to which nothing happened."""

import json
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.faults import (
    NUM_STEPS,
    PATTERN,
    PER_STEP,
    QUIET,
    ROLLOUT,
    SCRIPTED_RUN,
    SCRIPTED_UP,
    assert_each_record_was_learned_once,
    decoding,
    differing,
    servers_of,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def scripted_up(start, config_for, checkpoint: Path, script_of, tmp_path: Path) -> Callable[..., Any]:
    """Start the same run with servers that a test disturbs."""

    def run(*arguments: str, **faults: object) -> Any:
        (tmp_path / "script.json").write_text(json.dumps(script_of(**faults)))
        config = config_for(tmp_path, checkpoint)
        return start(tmp_path / "script.json", f"config={config}", *SCRIPTED_RUN, *arguments, program=SCRIPTED_UP)

    return run


def assert_nothing_happened(run: Any, undisturbed: Path) -> None:
    assert_each_record_was_learned_once(run, NUM_STEPS, PER_STEP)
    assert differing(run.folder / f"checkpoint-{NUM_STEPS}", undisturbed) == []
    assert run.pids() == []
    assert "Traceback" not in run.told


def disturb(run: Any, server: int, number: signal.Signals) -> None:
    """Send a signal to a server that has been decoding for a moment."""
    run.wait_for(lambda: decoding(run, server) is not None)
    time.sleep(0.2)
    servers_of(run)[server].signal(number)


def test_the_only_server_is_killed_in_a_stream(scripted_up, undisturbed: Path) -> None:
    run = scripted_up()
    disturb(run, 0, signal.SIGKILL)
    assert run.end() == 0, run.told
    assert "server-0 died with code -9; restart 1 of 3" in run.told
    assert "server-0: ready again" in run.told
    assert re.search(r"6 samples of it wait|3 samples of it wait", (run.folder / "learner.log").read_text())
    assert "is back with the weights" in (run.folder / "learner.log").read_text()
    assert_nothing_happened(run, undisturbed)


def test_one_of_two_servers_is_frozen_and_one_is_killed(scripted_up, undisturbed: Path) -> None:
    run = scripted_up("server_gpus=0,1", "train_gpus=2")
    disturb(run, 0, signal.SIGSTOP)
    run.wait_for(lambda: len(run.log()) >= 3)
    disturb(run, -1, signal.SIGKILL)
    assert run.end() == 0, run.told
    assert re.search(r"server-\d has not answered for \d+ s; restart 1 of 3", run.told)
    assert_nothing_happened(run, undisturbed)


def test_engines_that_hang_or_die_and_streams_that_are_cut(scripted_up, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "orders").mkdir()
    run = scripted_up(orders=str(tmp_path / "orders"))
    for step, fault in ((0, "hang"), (2, "cut"), (4, "die")):
        run.wait_for(lambda step=step: len(run.log()) >= step)
        (tmp_path / "orders" / fault).touch()
    assert run.end() == 0, run.told
    assert list((tmp_path / "orders").iterdir()) == []
    assert re.search(r"server-0 has failed: progress \(\d requests and no token for \d s", run.told)
    assert len(re.findall("restart . of 3", run.told)) == 2
    assert_nothing_happened(run, undisturbed)


def test_a_server_that_dies_too_often_ends_the_run_and_says_why(scripted_up) -> None:
    run = scripted_up("max_restarts=0", f"{PATTERN}=[B]")
    disturb(run, 0, signal.SIGKILL)
    assert run.end(30) == 1, run.told
    assert "server-0 died with code -9; it stays down (max_restarts 0)" in run.told
    assert run.pids() == []


def kill_in_a_b_step(run: Any, after: int) -> None:
    """Kill the server of a run of A, A, B while it decodes, once so many steps are logged."""
    run.wait_for(lambda: len([line for line in run.log() if "channel" in line]) >= after)
    disturb(run, 0, signal.SIGKILL)


def test_transformers_decodes_again_what_a_killed_server_had_and_nothing_changes(
    six_steps, start, config_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    run = start("up", f"config={config_of(tmp_path)}", "server_port=0", *QUIET)
    kill_in_a_b_step(run, 2)
    assert run.end() == 0, run.told
    assert "restart 1 of 3" in run.told
    assert_each_record_was_learned_once(run, 6, 6)
    assert differing(run.folder / "checkpoint-6", six_steps.folder / "checkpoint-6") == []


def test_vllm_comes_back_and_nothing_is_lost(start, config_of: Callable[[Path], Path], tmp_path: Path) -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    settings: Sequence[str] = (f"{ROLLOUT}.rollout_backend=vllm", f"{ROLLOUT}.deterministic=false")
    run = start("up", f"config={config_of(tmp_path)}", "server_port=0", "training.max_steps=3", *QUIET, *settings)
    run.wait_for(lambda: len(run.log()) >= 2, 120)
    disturb(run, 0, signal.SIGKILL)
    assert run.end(150) == 0, run.told
    assert "restart 1 of 3" in run.told
    assert_each_record_was_learned_once(run, 3, 6)

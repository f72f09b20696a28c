"""Servers that die, freeze, stall or cut their streams: the run goes on, and ends as one to which nothing happened."""

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.faults import (
    PATTERN,
    QUIET,
    ROLLOUT,
    assert_each_record_was_learned_once,
    assert_nothing_happened,
    disturb,
    is_stopped,
    learner_of,
    resident_mib,
    servers_of,
)

pytestmark = pytest.mark.slow

OPEN_STREAM = r"broke off: (?:RemoteProtocolError|ReadError|ReadTimeout)\(.*; ([1-9]\d*) samples of it wait for another"
"""What the learner says of a stream that was cut, and not of a server that refuses to be connected to."""


def learner_stopped(run: Any) -> int:
    """Wait until the learner has stopped itself; its pid."""
    run.wait_for(lambda: is_stopped(learner_of(run)))
    pid = learner_of(run)
    assert pid is not None
    return pid


@pytest.mark.very_slow
def test_the_only_server_is_frozen_in_a_publish_killed_between_two_answers_and_frozen_in_a_stream(
    up, undisturbed: Path, late
) -> None:
    # Three seconds without a token are a stall.
    delays = late(4, at=slice(2, 3), seconds=2.5) | late(6, at=slice(1), seconds=2.0)
    run = up("max_restarts=9", stops="publish:1,decode:8", delays=delays)
    learner = learner_stopped(run)
    os.kill(servers_of(run)[0].pid, signal.SIGSTOP)
    os.kill(learner, signal.SIGCONT)
    run.wait_for(lambda: len(run.log()) >= 2)
    assert re.search(r"/weights/commit failed: .*left out of it", run.said())
    assert "restart 1 of 9" not in run.said()
    learner = learner_stopped(run)
    os.kill(servers_of(run)[0].pid, signal.SIGKILL)
    os.kill(learner, signal.SIGCONT)
    run.wait_for(lambda: len(run.log()) >= 5)
    assert re.findall(OPEN_STREAM, run.said()) == ["1"]
    disturb(run, 0, signal.SIGSTOP)
    assert run.end() == 0, run.told
    assert len(re.findall(OPEN_STREAM, run.said())) >= 2
    told = re.findall(r"server-0 (has not answered|died with code -9).*?; restart (\d) of 9", run.told, re.DOTALL)
    assert [number for _, number in told] == [str(place + 1) for place in range(len(told))]
    assert told[:2] == [("has not answered", "1"), ("died with code -9", "2")]
    assert "has not answered" in dict(told[2:])  # on a busy machine a server may seem frozen once more
    assert run.told.count("server-0: ready again") == len(told)
    assert run.said().count("is back with the weights") >= 3
    assert_nothing_happened(run, undisturbed)


@pytest.mark.very_slow
def test_a_learner_that_reads_late_then_one_of_two_servers_is_frozen_and_one_is_killed(
    up, undisturbed: Path, late
) -> None:
    delays = late(2, at=slice(3), seconds=1.0) | late(4, 6, seconds=1.0)
    run = up("cpu_servers=2", stops="decode:2", delays=delays)
    learner = learner_stopped(run)
    assert sum(server.num_open() for server in servers_of(run)) > 0
    time.sleep(4)  # longer than a server may be silent
    os.kill(learner, signal.SIGCONT)
    run.wait_for(lambda: len(run.log()) >= 2)
    assert "restart" not in run.said()
    assert len(servers_of(run)) == 2
    run.wait_for(lambda: len(run.log()) >= 3)
    disturb(run, 0, signal.SIGSTOP)
    run.wait_for(lambda: len(run.log()) >= 5)
    disturb(run, -1, signal.SIGKILL)
    assert run.end() == 0, run.told
    assert re.search(r"server-\d has not answered for \d+ s; restart 1 of 3", run.told)
    assert len(re.findall(r"server-\d died with code -9; restart . of 3", run.told)) == 1
    assert_nothing_happened(run, undisturbed)


def test_streams_that_are_cut_and_engines_that_hang_or_die(up, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "cut").touch()
    run = up(orders=str(tmp_path / "orders"))
    run.wait_for(lambda: len(run.log()) >= 2)
    assert len(re.findall(OPEN_STREAM, run.said())) == 1
    for step, fault in ((2, "hang"), (4, "die")):
        run.wait_for(lambda step=step: len(run.log()) >= step)
        (tmp_path / "orders" / fault).touch()
    assert run.end() == 0, run.told
    assert list((tmp_path / "orders").iterdir()) == []
    assert re.search(r"server-0 has failed: progress \(\d requests and no token for \d+ s", run.told)
    assert re.search(r"server-0 (has failed: engine|died)", run.told)
    assert len(re.findall("restart . of 3", run.told)) >= 2
    assert_nothing_happened(run, undisturbed)


@pytest.mark.parametrize("engine", ["hf"], indirect=True, scope="session")
@pytest.mark.very_slow
def test_memory_stays_flat_while_a_server_dies_again_and_again(up) -> None:
    num_steps, deaths, early, late_on = 40, (6, 16, 26), 12, 38
    run = up(
        f"{PATTERN}=[B]", f"training.max_steps={num_steps}", "training.save_steps=100", "max_restarts=9",
        "cpu_servers=2", f"{ROLLOUT}.max_new_tokens=24",
    )  # fmt: skip
    seen: list[dict[int, float]] = []
    for step in sorted((*deaths, early, late_on)):
        run.wait_for(lambda step=step: len(run.log()) >= step)
        if step in deaths:
            run.wait_for(lambda: len(servers_of(run)) == 2)
            os.kill(servers_of(run)[-1].pid, signal.SIGKILL)
        else:
            seen.append({pid: resident_mib(pid) for pid in (learner_of(run), servers_of(run)[0].pid)})
    assert run.end() == 0, run.told
    assert run.told.count("died with code -9") == len(deaths)
    assert seen[0].keys() == seen[1].keys()
    for pid, mib in seen[0].items():
        assert seen[1][pid] < 1.04 * mib, seen
    assert_each_record_was_learned_once(run.folder, num_steps, 6)


@pytest.mark.parametrize("engine", ["scripted"], indirect=True, scope="session")
@pytest.mark.very_slow
def test_a_server_that_dies_too_often_ends_the_run_and_says_why(up) -> None:
    run = up("max_restarts=0", f"{PATTERN}=[B]", f"{ROLLOUT}.vllm.server.timeout_s=3")
    disturb(run, 0, signal.SIGKILL)
    assert run.end() == 1, run.told
    assert "server-0 died with code -9; it stays down (max_restarts 0)" in run.told
    assert run.pids() == []


@pytest.mark.very_slow
def test_vllm_comes_back_and_nothing_is_lost(start, config_of: Callable[[Path], Path], tmp_path: Path) -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    settings: Sequence[str] = (f"{ROLLOUT}.rollout_backend=vllm", f"{ROLLOUT}.deterministic=false")
    run = start("up", f"config={config_of(tmp_path)}", "server_port=0", "training.max_steps=3", *QUIET, *settings)
    run.wait_for(lambda: len(run.log()) >= 2, 300)
    disturb(run, 0, signal.SIGKILL)
    assert run.end(300) == 0, run.told
    assert "server-0 died with code -9; restart 1 of 3" in run.told
    assert re.search(OPEN_STREAM, run.said())
    assert_each_record_was_learned_once(run.folder, 3, 6)

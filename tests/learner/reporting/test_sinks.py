"""Records reach the log as soon as they are due, each on a line of its own."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from learner.plan.schedule import Channel
from learner.progress import Progress
from learner.reporting.sinks import Sinks
from learner.reporting.step_report import StepRecord
from learner.reporting.tallies import Tallies
from learner.rollouts.remote import LostSample
from learner.teacher import LearnedRollout


def finished(step: int, channel: Channel = Channel.A, lost: tuple[LostSample, ...] = ()) -> StepRecord:
    tallies = Tallies()
    tallies.count("loss", step + 1, 1)
    tallies.count("time/step_s", 0.5, 1)
    tallies.count("share/learner_computing", 0.4, 0.5)
    tallies.note("learning_rate", 0.1)
    return StepRecord(step, channel, 0.5, tallies, (), lost)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_step_is_on_disk_and_on_the_console_when_it_ends(tmp_path: Path, console: Console) -> None:
    log = tmp_path / "run" / "logging.jsonl"
    with Sinks(log, console, Progress(num_steps=2)) as sinks:
        for step in range(2):
            sinks.write(finished(step))
            assert [line["step"] for line in lines(log)] == list(range(1, step + 2))
    assert lines(log)[1] == {
        "step": 2,
        "channel": "A",
        "loss": 2.0,
        "time/step_s": 0.5,
        "share/learner_computing": 0.8,
        "learning_rate": 0.1,
    }
    assert "A    2/2  loss 2.000" in printed(console)


def test_steps_share_a_record_and_none_is_left_over(tmp_path: Path, console: Console) -> None:
    log = tmp_path / "logging.jsonl"
    with Sinks(log, console, Progress(num_steps=8), logging_steps=3, log_first=True) as sinks:
        for step in range(8):
            sinks.write(finished(step))
    assert [(line["step"], line["loss"]) for line in lines(log)] == [(1, 1.0), (3, 2.5), (6, 5.0), (8, 7.5)]


def test_a_resumed_run_goes_on_in_the_same_log(tmp_path: Path, console: Console) -> None:
    log = tmp_path / "logging.jsonl"
    for step in range(2):
        with Sinks(log, console, Progress(num_steps=2, step=step)) as sinks:
            sinks.write(finished(step))
    assert [line["step"] for line in lines(log)] == [1, 2]


def test_a_warning_is_printed_and_logged(tmp_path: Path, console: Console) -> None:
    log = tmp_path / "logging.jsonl"
    with Sinks(log, console, Progress(num_steps=9, step=4)) as sinks:
        sinks.warn(None)
        sinks.warn("answers grow [longer]")
    assert lines(log) == [{"step": 4, "warning": "answers grow [longer]"}]
    assert "warning: answers grow [longer]" in printed(console)


def test_lost_samples_are_named(tmp_path: Path, console: Console, learned_of: Callable[..., LearnedRollout]) -> None:
    lost = LostSample(learned_of("{}").rollout.request, "bad_image", "not a PNG [/or so]", retryable=False)
    with Sinks(tmp_path / "logging.jsonl", console, Progress(num_steps=9)) as sinks:
        sinks.write(finished(4, Channel.B, (lost,)))
    assert "step 5: train:1 lost: bad_image: not a PNG [/or so]" in printed(console)

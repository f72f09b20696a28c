"""Records reach the log as soon as they are due, each on a line of its own."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from learner.plan.progress import Progress
from learner.plan.schedule import Channel
from learner.reporting.sinks import Sinks, console_line
from learner.reporting.step_report import StepRecord
from learner.reporting.tallies import Tallies
from learner.types import LostSample, TaughtRollout


def finished(step: int, channel: Channel = Channel.A, lost: tuple[LostSample, ...] = ()) -> StepRecord:
    """A step that trained one record, and perhaps lost some."""
    tallies = Tallies()
    tallies.count("loss", step + 1, 1)
    tallies.count("time/step_s", 0.5, 1)
    tallies.count("share/learner_computing", 0.4, 0.5)
    tallies.count("packing/tokens_per_s", 1000, 0.5)
    tallies.note("learning_rate", 0.1)
    return StepRecord(step, channel, 0.5, tallies, (f"train:{step}",), (), lost)


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
    with Sinks(tmp_path / "run", console, Progress(num_steps=2)) as sinks:
        for step in range(2):
            sinks.write(finished(step))
            assert [line["step"] for line in lines(log)] == list(range(1, step + 2))
    assert lines(log)[1] == {
        "step": 2,
        "channel": "A",
        "loss": 2.0,
        "time/step_s": 0.5,
        "share/learner_computing": 0.8,
        "packing/tokens_per_s": 2000.0,
        "learning_rate": 0.1,
    }
    assert "A    2/2  loss 2.000" in printed(console)


def test_the_console_tells_rates_and_how_both_sides_spent_the_time() -> None:
    metrics = {"loss": 1.0, "learning_rate": 0.1, "time/step_s": 0.5}
    metrics |= {"packing/tokens_per_s": 2000.4, "share/learner_computing": 0.8}
    line = console_line(3, 9, Channel.A, metrics)
    assert "0.50 s  2000 tokens/s learned  learner 80%" in line
    assert "servers" not in line
    metrics |= {"share/server_decoding": 0.3, "rollout/recall": 0.5, "rollout/sample_valid_pred_rate": 1.0}
    line = console_line(3, 9, Channel.B, {**metrics, "rollout/gen_tokens_per_s": 123.4})
    assert "2000 tokens/s learned  learner 80%  servers 30%" in line
    assert line.endswith("123 tokens/s decoded")


def test_steps_share_a_record_and_none_is_left_over(tmp_path: Path, console: Console) -> None:
    log = tmp_path / "logging.jsonl"
    with Sinks(tmp_path, console, Progress(num_steps=8), logging_steps=3, log_first=True) as sinks:
        for step in range(8):
            sinks.write(finished(step))
    assert [(line["step"], line["loss"]) for line in lines(log)] == [(1, 1.0), (3, 2.5), (6, 5.0), (8, 7.5)]


def test_a_resumed_run_goes_on_where_its_checkpoint_stood(tmp_path: Path, console: Console) -> None:
    with Sinks(tmp_path, console, Progress(num_steps=9)) as sinks:
        for step in range(5):
            sinks.write(finished(step))
    with (tmp_path / "logging.jsonl").open("a") as torn:
        torn.write('{"step": 6, "lo')
    with Sinks(tmp_path, console, Progress(num_steps=9, step=3)) as sinks:
        sinks.write(finished(3, Channel.B))
    for name in ("logging.jsonl", "ledger.jsonl"):
        assert [line["step"] for line in lines(tmp_path / name)] == [1, 2, 3, 4]
    assert [line["channel"] for line in lines(tmp_path / "logging.jsonl")] == ["A", "A", "A", "B"]


def test_the_ledger_has_every_step_whatever_is_logged(
    tmp_path: Path, console: Console, learned_of: Callable[..., TaughtRollout]
) -> None:
    lost = LostSample(learned_of("{}").rollout.request, "bad_image", "not a PNG", retryable=False)
    with Sinks(tmp_path, console, Progress(num_steps=9), logging_steps=5) as sinks:
        sinks.write(finished(0))
        sinks.write(finished(1, Channel.B, (lost,)))
    assert lines(tmp_path / "ledger.jsonl") == [
        {"step": 1, "trained": ["train:0"], "lost": []},
        {"step": 2, "trained": ["train:1"], "lost": ["train:1"]},
    ]
    assert lines(tmp_path / "logging.jsonl") == []


def test_a_warning_is_printed_and_logged(tmp_path: Path, console: Console) -> None:
    log = tmp_path / "logging.jsonl"
    with Sinks(tmp_path, console, Progress(num_steps=9, step=4)) as sinks:
        sinks.warn(None)
        sinks.warn("answers grow [longer]")
    assert lines(log) == [{"step": 4, "warning": "answers grow [longer]"}]
    assert "warning: answers grow [longer]" in printed(console)


class Kept:
    """A tracker that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.sent.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed = True


def test_trackers_are_sent_the_numbers_of_the_log(tmp_path: Path, console: Console) -> None:
    tracker = Kept()
    with Sinks(tmp_path, console, Progress(num_steps=4), logging_steps=2, trackers=(tracker,)) as sinks:
        for step in range(4):
            sinks.write(finished(step))
        sinks.append({"step": 4, "eval_rollout_f1": 0.5})
        assert not tracker.closed
    assert tracker.closed
    logged = [
        {name: value for name, value in line.items() if name != "channel"} for line in lines(tmp_path / "logging.jsonl")
    ]
    assert [{"step": step, **numbers} for step, numbers in tracker.sent] == logged
    assert len(logged) == 3


def test_lost_samples_are_named(tmp_path: Path, console: Console, learned_of: Callable[..., TaughtRollout]) -> None:
    lost = LostSample(learned_of("{}").rollout.request, "bad_image", "not a PNG [/or so]", retryable=False)
    with Sinks(tmp_path, console, Progress(num_steps=9)) as sinks:
        sinks.write(finished(4, Channel.B, (lost,)))
    assert "step 5: train:1 lost: not a PNG [/or so]" in printed(console)

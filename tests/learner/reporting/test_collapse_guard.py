"""The guard speaks up when answers go astray, once, and only then."""

import pytest

from learner.plan.schedule import Channel
from learner.reporting.collapse_guard import Guard, RunLeftItsBands
from learner.reporting.step_report import StepRecord
from learner.reporting.tallies import Tallies
from shared.config.stage2 import GuardSection


def b_step(predicted: int = 4, truth: int = 4, truncated: int = 0, valid: int = 10, answers: int = 10) -> StepRecord:
    tallies = Tallies()
    tallies.count("rollout/pred_per_gt", predicted, truth)
    tallies.count("rollout/parse_truncated_rate", truncated, answers)
    tallies.count("rollout/sample_sound_rate", valid, answers)
    return StepRecord(0, Channel.B, 1.0, tallies, learned=(), lost=(), trained=())


def said(guard: Guard, *steps: StepRecord) -> list[bool]:
    return [guard.watch(step) is not None for step in steps]


def test_healthy_answers_are_passed_in_silence() -> None:
    assert not any(said(Guard(GuardSection(window=3)), *[b_step(valid=9, truncated=1)] * 20))


@pytest.mark.parametrize(
    ("sick", "metric", "value"),
    [
        (b_step(predicted=8), "rollout/pred_per_gt", "2.00 (limit 1.5)"),
        (b_step(truncated=5), "rollout/parse_truncated_rate", "0.50 (limit 0.2)"),
        (b_step(valid=3), "rollout/sample_sound_rate", "0.30 (limit 0.8)"),
    ],
)
def test_each_band_is_named_with_its_value_and_a_cure(sick: StepRecord, metric: str, value: str) -> None:
    guard = Guard(GuardSection(window=2))
    assert guard.watch(sick) is None
    warning = guard.watch(sick) or ""
    assert f"{metric} is {value}" in warning
    assert "prefix_extras: drop" in warning


@pytest.mark.parametrize(
    ("limit", "step"),
    [
        ({"pred_per_gt_max": 2.5}, b_step(predicted=8)),
        ({"truncated_rate_max": 0.6}, b_step(truncated=5)),
        ({"valid_rate_min": 0.2}, b_step(valid=3)),
    ],
)
def test_each_limit_is_the_configurations(limit: dict[str, float], step: StepRecord) -> None:
    assert any(said(Guard(GuardSection(window=2)), step, step))
    assert not any(said(Guard(GuardSection(window=2, **limit)), step, step))


def test_an_excursion_is_told_once_and_the_next_one_again() -> None:
    sick, well = b_step(valid=0), b_step()
    steps = [well, well, sick, sick, sick, well, well, well, sick, sick]
    assert said(Guard(GuardSection(window=2)), *steps) == [False] * 2 + [True] + [False] * 5 + [True] + [False]


def test_one_bad_step_in_a_window_of_good_ones_is_no_excursion() -> None:
    assert not any(said(Guard(GuardSection(window=10)), *[b_step()] * 9, b_step(valid=0), *[b_step()] * 9))


def test_a_step_with_more_answers_weighs_more() -> None:
    guard = Guard(GuardSection(window=2))
    assert said(guard, b_step(valid=0, answers=10), b_step(valid=90, answers=90)) == [False, False]


def test_steps_of_channel_a_do_not_fill_the_window() -> None:
    guard = Guard(GuardSection(window=2))
    a_step = StepRecord(0, Channel.A, 1.0, Tallies(), learned=(), lost=(), trained=())
    assert said(guard, b_step(valid=0), a_step, a_step, b_step(valid=0)) == [False, False, False, True]


def test_it_can_stop_the_run() -> None:
    guard = Guard(GuardSection(window=1, action="stop"))
    guard.watch(b_step())
    with pytest.raises(RunLeftItsBands, match="sample_sound_rate"):
        guard.watch(b_step(valid=0))


def test_it_can_be_switched_off() -> None:
    assert not any(said(Guard(GuardSection(window=1, enabled=False, action="stop")), *[b_step(valid=0)] * 3))

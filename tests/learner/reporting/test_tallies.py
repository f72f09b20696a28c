"""Metrics are reduced from sums, never from means."""

import pytest

from learner.reporting.tallies import Tallies, percentile


def test_a_ratio_over_steps_weighs_each_step_by_its_denominator() -> None:
    whole = Tallies()
    for numerator, denominator in ((1, 2), (8, 8)):
        step = Tallies()
        step.count("rollout/recall", numerator, denominator)
        whole += step
    assert whole.reduced() == {"rollout/recall": 0.9}


def test_sums_add_and_last_values_replace() -> None:
    whole = Tallies()
    for value in (3, 4):
        step = Tallies()
        step.count("stage2/raw_rollouts", value)
        step.note("learning_rate", value / 10)
        whole += step
    assert whole.reduced() == {"stage2/raw_rollouts": 7, "learning_rate": 0.4}


def test_percentiles_are_taken_over_all_samples_of_all_steps() -> None:
    whole = Tallies()
    for values in (range(1, 51), range(51, 101)):
        step = Tallies()
        for value in values:
            step.note("rollout/gen_new_tokens_p90", value)
        whole += step
    assert whole.reduced() == {"rollout/gen_new_tokens_p90": 90}


def test_a_ratio_over_nothing_is_left_out_but_a_sum_of_nothing_is_zero() -> None:
    tallies = Tallies()
    tallies.count("rollout/precision", 0, 0)
    tallies.count("rollout/fp", 0)
    assert tallies.reduced() == {"rollout/fp": 0}


def test_a_drop_reason_is_counted_under_its_own_name() -> None:
    tallies = Tallies()
    tallies.count("rollout/parse_dropped_arity", 2)
    assert tallies.reduced() == {"rollout/parse_dropped_arity": 2}


def test_a_name_outside_the_catalogue_is_refused() -> None:
    tallies = Tallies()
    tallies.count("rollout/vibes", 1, 1)
    with pytest.raises(KeyError, match="rollout/vibes"):
        tallies.reduced()


@pytest.mark.parametrize(("percent", "value"), [(50, 3), (90, 5), (99, 5), (1, 1)])
def test_percentiles_are_values_that_occurred(percent: int, value: int) -> None:
    assert percentile([5, 1, 4, 2, 3], percent) == value

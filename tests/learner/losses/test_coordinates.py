"""Coordinate losses against numbers worked out by hand."""

import math

import pytest
import torch

from learner.losses.coordinates import expected_coordinate, soft_ce, w1


def certain(*bins: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(bins), 1000).float()


def test_the_expectation_runs_from_the_first_bin_at_0_to_the_last_at_1() -> None:
    assert expected_coordinate(certain(0, 999, 333)).tolist() == pytest.approx([0.0, 1.0, 1 / 3])
    halves = (certain(0) + certain(999)) / 2
    assert expected_coordinate(halves).tolist() == pytest.approx([0.5])


def test_w1_is_the_distance_the_mass_has_to_travel() -> None:
    bins = torch.tensor([100, 100])
    assert w1(certain(100, 400), bins).tolist() == pytest.approx([0.0, 300 / 999], abs=1e-6)
    split = 0.25 * certain(90) + 0.75 * certain(120)
    assert w1(split, torch.tensor([100])).tolist() == pytest.approx([(0.25 * 10 + 0.75 * 20) / 999])


def test_soft_ce_of_a_flat_distribution_is_the_log_of_the_number_of_bins() -> None:
    flat = torch.full((1, 1000), -math.log(1000))
    assert soft_ce(flat, torch.tensor([7]), 2.0).tolist() == pytest.approx([math.log(1000)])


def test_soft_ce_is_least_at_its_own_gaussian_and_equals_its_entropy_there() -> None:
    sigma, bins = 2.0, torch.tensor([500])
    own = torch.log_softmax(-0.5 * ((torch.arange(1000) - 500) / sigma) ** 2, -1)[None]
    entropy = 0.5 * math.log(2 * math.pi * math.e * sigma**2)  # of the continuous Gaussian, equal for wide bins
    assert soft_ce(own, bins, sigma).item() == pytest.approx(entropy, abs=1e-4)
    assert soft_ce(own.roll(1, -1), bins, sigma) > soft_ce(own, bins, sigma)


def test_soft_ce_at_the_border_loses_no_mass() -> None:
    flat = torch.full((2, 1000), -math.log(1000))
    assert soft_ce(flat, torch.tensor([0, 999]), 2.0).tolist() == pytest.approx([math.log(1000)] * 2)

"""Losses on the distribution over the 1000 coordinate tokens."""

import torch
from torch import Tensor

from learner.detection.vocabulary import NUM_BINS


def bin_centres(like: Tensor) -> Tensor:
    """Where the bins lie on the canvas [1000]: k / 999, in canvas widths."""
    return torch.arange(NUM_BINS, device=like.device, dtype=like.dtype) / (NUM_BINS - 1)


def expected_coordinate(probabilities: Tensor) -> Tensor:
    """Expectation Σ_k p_k · k/999 of [..., 1000] probabilities; returns [...] in canvas widths."""
    return probabilities @ bin_centres(probabilities)


def soft_ce(log_probabilities: Tensor, bins: Tensor, sigma: float) -> Tensor:
    """Cross-entropy in nats towards a Gaussian of `sigma` bins around the true bin, normalised over the 1000.

    `log_probabilities` is [..., 1000], `bins` int64 [...]; returns [...]. Label smoothing by distance, as in SORD (Díaz
    and Marathe, CVPR 2019) with squared distances.
    """
    distance = torch.arange(NUM_BINS, device=bins.device) - bins[..., None]
    target = torch.softmax(-0.5 * (distance / sigma) ** 2, dim=-1)
    return -(target * log_probabilities).sum(-1)


def w1(probabilities: Tensor, bins: Tensor) -> Tensor:
    """Wasserstein-1 distance to the true bin in canvas widths: Σ_k |CDF_k − 1[k ≥ bin]| / 999.

    `probabilities` is [..., 1000], `bins` int64 [...]; returns [...]. In one dimension W1 is the area between the
    cumulative distributions (Vallender 1974).
    """
    reached = torch.arange(NUM_BINS, device=bins.device) >= bins[..., None]
    return (probabilities.cumsum(-1) - reached.to(probabilities.dtype)).abs().sum(-1) / (NUM_BINS - 1)

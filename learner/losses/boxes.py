"""Losses between an expected box and the true one. Boxes are (x1, y1, x2, y2) in canvas widths and heights, 0..1."""

import torch
from torch import Tensor


def box_l1(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean |c − t| over the four raw values of [b, 4] boxes; returns [b]."""
    return (predicted - true).abs().mean(-1)


def giou_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """1 − GIoU of [b, 4] boxes (Rezatofighi et al., CVPR 2019); returns [b], each in 0..2.

    Predicted corners are sorted and clamped to the canvas first. A true box has an area, so no quotient is 0/0.
    """
    corners = predicted.clamp(0, 1).unflatten(-1, (2, 2))
    low, high = corners.amin(-2), corners.amax(-2)
    true_low, true_high = true[..., :2], true[..., 2:]
    overlap = _area(torch.maximum(low, true_low), torch.minimum(high, true_high))
    union = _area(low, high) + _area(true_low, true_high) - overlap
    hull = _area(torch.minimum(low, true_low), torch.maximum(high, true_high))
    return 1 - overlap / union + (hull - union) / hull


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(-1)

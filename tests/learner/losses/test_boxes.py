"""Box losses against numbers worked out by hand."""

import pytest
import torch

from learner.losses.boxes import box_l1, giou_loss

UNIT = [0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("predicted", "true", "loss"),
    [
        (UNIT, UNIT, 0.0),
        ([0.0, 0.0, 0.5, 0.25], UNIT, 0.5),  # half of it, hull = true box
        ([0.5, 0.5, 1.0, 1.0], UNIT, 1.5),  # touching corners: IoU 0, hull 1, union 1/2
        ([0.5, 0.0, 1.0, 0.5], UNIT, 1.0),  # side by side: IoU 0, hull = union
        ([0.25, 0.25, 0.25, 0.25], UNIT, 1.0),  # a point inside: IoU 0, hull = union
        ([0.5, 0.5, 0.0, 0.0], UNIT, 0.0),  # reversed corners are sorted
        ([-1.0, 0.0, 0.5, 0.5], UNIT, 0.0),  # what is off the canvas is clamped
    ],
)
def test_giou_of_known_boxes(predicted: list[float], true: list[float], loss: float) -> None:
    assert giou_loss(torch.tensor([predicted]), torch.tensor([true])).tolist() == pytest.approx([loss])


def test_l1_is_the_mean_over_the_raw_corners() -> None:
    predicted = torch.tensor([[0.5, 0.1, 0.2, 0.3]])
    assert box_l1(predicted, torch.tensor([[0.1, 0.1, 0.4, 0.5]])).tolist() == pytest.approx([0.2])


def test_a_box_that_collapsed_to_a_point_has_a_finite_gradient() -> None:
    predicted = torch.full((1, 4), 0.3, requires_grad=True)
    giou_loss(predicted, torch.tensor([[0.1, 0.1, 0.2, 0.2]])).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    assert predicted.grad.abs().sum() > 0

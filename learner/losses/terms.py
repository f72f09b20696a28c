"""The loss of one pack: every term of docs/numerics.md, and their sum on the step's scale."""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.detection.vocabulary import NUM_BINS
from learner.losses.boxes import box_l1, giou_loss
from learner.losses.coordinates import expected_coordinate, soft_ce, w1
from learner.model.batch import PackedBatch
from learner.model.head import TokenScores
from learner.plan.step_plan import NUM_CORNER_VALUES, StepTotals


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms and the shape of the coordinate distribution, named as in the configuration."""

    bbox_l1: float = 2.0
    bbox_giou: float = 1.0
    coord_gate: float = 1.0
    coord_soft_ce: float = 0.0
    coord_w1: float = 0.0
    temperature: float = 1.0
    target_sigma: float = 2.0


@dataclass(frozen=True)
class LossTerms:
    """What one pack adds to the loss of its step.

    `total` has the gradient and is scaled: summed over the packs of a step it is the step's loss. The others are
    detached sums over the pack, before the weights of the box terms and before N and B; `num_samples`, `num_boxes` and
    4 × `num_boxes` coordinates are what they were summed over.
    """

    total: Tensor
    ce: Tensor
    bbox_l1: Tensor
    bbox_giou: Tensor
    coord: Tensor
    coord_mass: Tensor
    num_samples: int
    num_boxes: int

    def sums(self) -> Tensor:
        """All numbers of the pack as one float32 tensor [6], so that they are read from the device at once."""
        parts = (self.total.detach(), self.ce, self.bbox_l1, self.bbox_giou, self.coord, self.coord_mass)
        return torch.stack(parts)


def loss_terms(scores: TokenScores, batch: PackedBatch, totals: StepTotals, weights: LossWeights) -> LossTerms:
    """Compute a pack's loss from what its supervised positions score.

    L = ce / N + (bbox_l1_weight · L1 + bbox_giou_weight · (1 − GIoU)) / B + coordinate terms / 4B, with N and B of the
    whole optimizer step in `totals`.
    """
    ce = ((scores.log_normalisers - scores.labels) * batch.ce_weights).sum()
    log_mass = scores.boxes.logsumexp(-1) - scores.log_normalisers[batch.box_slots]
    log_probabilities = torch.log_softmax(scores.boxes / weights.temperature, dim=-1)
    probabilities = log_probabilities.exp()

    expected, true = expected_coordinate(probabilities), batch.box_bins / (NUM_BINS - 1)
    l1, giou = box_l1(expected, true).sum(), giou_loss(expected, true).sum()
    coord = -weights.coord_gate * log_mass.sum()
    if weights.coord_soft_ce:
        coord = coord + weights.coord_soft_ce * soft_ce(log_probabilities, batch.box_bins, weights.target_sigma).sum()
    if weights.coord_w1:
        coord = coord + weights.coord_w1 * w1(probabilities, batch.box_bins).sum()

    total = (
        ce / totals.num_samples
        + (weights.bbox_l1 * l1 + weights.bbox_giou * giou) / totals.num_boxes
        + coord / (NUM_CORNER_VALUES * totals.num_boxes)
    )
    mass = log_mass.detach().exp().sum()
    return LossTerms(
        total, ce.detach(), l1.detach(), giou.detach(), coord.detach(), mass, batch.num_samples, batch.num_boxes
    )

"""The loss of one pack: a row for each term of docs/numerics.md, and their sum on the scale of the step.

To add a term: its key `<name>_weight` in shared/config/stage2.py, its metric in shared/metrics.py, and its row here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from learner.detection.vocabulary import NUM_BINS
from learner.losses.boxes import box_l1, giou_loss
from learner.losses.coordinates import expected_coordinate, soft_ce, w1
from learner.model.batch import PackedBatch
from learner.model.head import TokenScores
from learner.plan.step_plan import NUM_CORNER_VALUES, StepTotals
from shared.config.stage2 import Stage2Section

Per = Literal["sample", "box", "slot", "answer", "token"]
"""What a sum is divided by: N samples of weight W̄, B boxes, 4B coordinates or N·k sampled answers of weight W̄ of the
step; an observation, which needs no gradient, also by its sampled tokens."""
MOST_LOG_RATIO = 3.0
"""A token that two engines give such different log-probabilities is left out: one of them is wrong."""


class Scored:
    """What a pack's S supervised positions and b boxes score, and what several terms make of it, each worked out once.

    All float32. A term that needs another column of the batch reads it from `batch`.
    """

    def __init__(self, scores: TokenScores, batch: PackedBatch, section: Stage2Section) -> None:
        self.scores = scores
        self.batch = batch
        self.section = section

    @cached_property
    def ce(self) -> Tensor:
        """[S]: −log-probability of each token, in nats."""
        return self.scores.log_normalisers - self.scores.labels

    @cached_property
    def log_ratio(self) -> Tensor:
        """[S]: log π/π_served of each sampled token, 0 where both are one. Without a gradient."""
        served = self.batch.served_logprobs
        return torch.where(served.isnan(), 0.0, -self.ce.detach() - served)

    @cached_property
    def importance(self) -> Tensor:
        """[S]: the ratio, cut at `importance_clip`, 0 where it cannot be right. Without a gradient."""
        ratio = self.log_ratio.exp().clamp(max=self.section.reward.importance_clip)
        return torch.where(self.log_ratio.abs() > MOST_LOG_RATIO, 0.0, ratio)

    @cached_property
    def log_mass(self) -> Tensor:
        """[b, 4]: logarithm of the probability that a slot holds any coordinate at all."""
        return self.scores.boxes.logsumexp(-1) - self.scores.log_normalisers[self.batch.box_slots]

    @cached_property
    def log_probabilities(self) -> Tensor:
        """[b, 4, 1000]: over the bins alone, at `softctx_temperature`."""
        return torch.log_softmax(self.scores.boxes / self.section.softctx_temperature, dim=-1)

    @cached_property
    def probabilities(self) -> Tensor:
        """[b, 4, 1000]: the same, not as logarithms."""
        return self.log_probabilities.exp()

    @cached_property
    def expected(self) -> Tensor:
        """[b, 4]: expected coordinates in canvas widths and heights."""
        return expected_coordinate(self.probabilities)

    @cached_property
    def true(self) -> Tensor:
        """[b, 4]: true coordinates in canvas widths and heights."""
        return self.batch.box_bins / (NUM_BINS - 1)


def cross_entropy(scored: Scored) -> Tensor:
    """Σ_t w_t · ce_t, in nats.

    Not the mean of each sample: that would let an answer which ends early vote for its end with more weight than a long
    one votes for going on.
    """
    return (scored.ce * scored.batch.ce_weights).sum()


def expected_l1(scored: Scored) -> Tensor:
    """Mean |c − t| of each box's four expected values."""
    return box_l1(scored.expected, scored.true).sum()


def expected_giou(scored: Scored) -> Tensor:
    """1 − GIoU of each expected box."""
    return giou_loss(scored.expected, scored.true).sum()


def coordinate_gate(scored: Scored) -> Tensor:
    """−log of the mass inside the coordinate vocabulary, in nats: without it nothing keeps the mass there."""
    return -scored.log_mass.sum()


def coordinate_soft_ce(scored: Scored) -> Tensor:
    """Cross-entropy towards a Gaussian of `target_sigma` bins around each true bin, in nats."""
    return soft_ce(scored.log_probabilities, scored.batch.box_bins, scored.section.target_sigma).sum()


def coordinate_w1(scored: Scored) -> Tensor:
    """Distance of the cumulative distributions, in canvas widths."""
    return w1(scored.probabilities, scored.batch.box_bins).sum()


def policy_gradient(scored: Scored) -> Tensor:
    """Σ_t ρ_t · A_t · ce_t over sampled tokens. It has the gradient of the expected reward, and no value of its own."""
    return (scored.ce * scored.batch.advantages * scored.importance).sum()


def entropy(scored: Scored) -> Tensor:
    """−log-probability of sampled tokens: on average the entropy of the policy, in nats."""
    return scored.ce.detach()[scored.batch.sampled].sum()


def importance_weight(scored: Scored) -> Tensor:
    """ρ of sampled tokens."""
    return scored.importance[scored.batch.sampled].sum()


def importance_cut(scored: Scored) -> Tensor:
    """Sampled tokens whose ratio was cut or left out."""
    cut = (scored.importance != scored.log_ratio.exp()) & scored.batch.sampled
    return cut.sum().float()


def coordinate_mass(scored: Scored) -> Tensor:
    """The mass inside the coordinate vocabulary, without a gradient."""
    return scored.log_mass.detach().exp().sum()


@dataclass(frozen=True)
class Term:
    """One term of the loss: `weight` · `compute`, a sum over the pack as a scalar [], divided as `per` says.

    `weight` is the key of `stage2_ab` without `_weight`, None = 1. Under `metric` the sum itself is logged; with
    `logs_weighted`, for terms that share a metric, the sum times its weight, and a weight of 0 costs nothing.
    """

    metric: str
    per: Per
    weight: str | None
    compute: Callable[[Scored], Tensor]
    logs_weighted: bool = False

    def weight_in(self, section: Stage2Section) -> float:
        return 1.0 if self.weight is None else float(getattr(section, f"{self.weight}_weight"))


@dataclass(frozen=True)
class Observation:
    """A number of each pack that is logged and has no part in the loss."""

    metric: str
    per: Per
    compute: Callable[[Scored], Tensor]


TERMS = (
    Term("loss/ce", "sample", None, cross_entropy),
    Term("loss/bbox_l1", "box", "bbox_l1", expected_l1),
    Term("loss/bbox_giou", "box", "bbox_giou", expected_giou),
    Term("loss/coord", "slot", "coord_gate", coordinate_gate, logs_weighted=True),
    Term("loss/coord", "slot", "coord_soft_ce", coordinate_soft_ce, logs_weighted=True),
    Term("loss/coord", "slot", "coord_w1", coordinate_w1, logs_weighted=True),
    Term("loss/reward", "answer", None, policy_gradient),
)
OBSERVATIONS = (
    Observation("loss/coord_mass", "slot", coordinate_mass),
    Observation("reward/entropy", "token", entropy),
    Observation("reward/importance_mean", "token", importance_weight),
    Observation("reward/importance_clipped", "token", importance_cut),
)

PER: Mapping[str, Per] = {row.metric: row.per for row in (*TERMS, *OBSERVATIONS)}
"""The metrics of the loss in the order of their rows, and what each is summed over."""


@dataclass(frozen=True)
class PackLoss:
    """What one pack adds to the loss of its step.

    `total` has the gradient and is scaled: summed over the packs of a step it is the step's loss. `sums` are detached
    sums over the pack by metric, before the division by N·W̄, B or 4B; `counts` are the pack's own shares of these.
    """

    total: Tensor
    sums: Mapping[str, Tensor]
    counts: Mapping[Per, float]

    def numbers(self) -> Tensor:
        """`total` and the sums in the order of PER, float32 [1 + metrics], so that a device is read once."""
        return torch.stack([self.total.detach(), *(self.sums[metric] for metric in PER)])


def loss_of(scores: TokenScores, batch: PackedBatch, totals: StepTotals, section: Stage2Section) -> PackLoss:
    """Compute a pack's loss from what its supervised positions score.

    L = Σ weight · sum / (N·W̄, B or 4B as the row says) over TERMS; N and B are those of the whole step, in `totals`.
    """
    scored = Scored(scores, batch, section)
    nothing = torch.zeros((), device=scores.log_normalisers.device)
    counts = _counts(batch.num_samples, batch.num_boxes, batch.num_answers, totals.answer_weight)
    counts["token"] = batch.num_sampled_tokens
    denominators = _counts(totals.num_samples, totals.num_boxes, max(1, totals.num_answers), totals.answer_weight)
    sums = dict.fromkeys(PER, nothing)
    total = nothing
    for term in TERMS:
        weight = term.weight_in(section)
        if (term.logs_weighted and not weight) or (term.per == "answer" and not batch.num_answers):
            continue
        value = term.compute(scored)
        part = value if term.weight is None else weight * value
        total = total + part / denominators[term.per]
        sums[term.metric] = sums[term.metric] + (part if term.logs_weighted else value).detach()
    for observation in OBSERVATIONS:
        if observation.per != "token" or batch.num_answers:
            sums[observation.metric] = observation.compute(scored)
    return PackLoss(total, sums, counts)


def _counts(num_samples: float, num_boxes: float, num_answers: float, answer_weight: float) -> dict[Per, float]:
    return {
        "sample": num_samples * answer_weight,
        "box": num_boxes,
        "slot": NUM_CORNER_VALUES * num_boxes,
        "answer": num_answers * answer_weight,
    }

"""The loss of a pack put together from its terms, on logits made by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from learner.losses.terms import TERMS, PackLoss, Scored, Term, loss_of
from learner.model.batch import PackedBatch, PatchLayout
from learner.model.head import TokenScores
from learner.plan.step_plan import StepTotals
from shared.config.stage2 import Stage2Section

NUM_WORDS = 24
COORDINATE_IDS = torch.arange(NUM_WORDS, NUM_WORDS + 1000)
BINS = (100, 200, 300, 400)
NOTHING = torch.zeros(0, dtype=torch.long)
ONLY_CE = Stage2Section(bbox_l1_weight=0, bbox_giou_weight=0, coord_gate_weight=0)


def batch_of(
    labels: list[int], ce_weights: list[float], slots: list[list[int]], bins: list[tuple[int, ...]]
) -> PackedBatch:
    return PackedBatch(
        record_ids=("a:1", "a:2"),
        layout="rows",
        input_ids=NOTHING,
        position_ids=NOTHING,
        cu_seqlens=NOTHING,
        max_seqlen=0,
        image_positions=NOTHING,
        pixel_values=NOTHING,
        image_grid=NOTHING,
        patches=PatchLayout({}),
        predictor_rows=NOTHING,
        predictor_columns=NOTHING,
        labels=torch.tensor(labels),
        ce_weights=torch.tensor(ce_weights),
        box_slots=torch.tensor(slots, dtype=torch.long).reshape(-1, 4),
        box_bins=torch.tensor(bins, dtype=torch.long).reshape(-1, 4),
        sampled=torch.zeros(len(labels), dtype=torch.bool),
        advantages=torch.zeros(len(labels)),
        served_logprobs=torch.full((len(labels),), torch.nan),
        num_answers=0,
        num_sampled_tokens=0,
    )


def terms_of(scores: Tensor, batch: PackedBatch, totals: StepTotals, weights: Stage2Section) -> PackLoss:
    """The loss of logits [S, vocabulary]."""
    labels = scores.gather(1, batch.labels[:, None])[:, 0]
    read = TokenScores(scores.logsumexp(-1), labels, scores[batch.box_slots][..., COORDINATE_IDS])
    return loss_of(read, batch, totals, weights)


def one_box(weights: Stage2Section, scores: Tensor, totals: StepTotals = StepTotals(2, 1)) -> PackLoss:
    batch = batch_of([NUM_WORDS + bin for bin in BINS], [0.0] * 4, [[0, 1, 2, 3]], [BINS])
    return terms_of(scores, batch, totals, weights)


def certain_of(bins: tuple[int, ...]) -> Tensor:
    scores = torch.full((4, NUM_WORDS + 1000), -1e4)
    scores[torch.arange(4), NUM_WORDS + torch.tensor(bins)] = 0
    return scores


def test_cross_entropy_is_torchs_own() -> None:
    scores, labels, weights = torch.randn(5, NUM_WORDS + 1000), torch.tensor([0, 3, 29, 3, 7]), torch.rand(5)
    expected = torch.nn.functional.cross_entropy(scores, labels, reduction="none") @ weights
    terms = terms_of(scores, batch_of(labels.tolist(), weights.tolist(), [], []), StepTotals(1, 1), ONLY_CE)
    torch.testing.assert_close(terms.sums["loss/ce"], expected)


def test_cross_entropy_is_weighted_and_divided_by_the_samples_of_the_step() -> None:
    batch = batch_of([1, 2, 3], [0.5, 0.25, 0.0], [], [])
    terms = terms_of(torch.zeros(3, NUM_WORDS + 1000), batch, StepTotals(10, 1), ONLY_CE)
    assert terms.sums["loss/ce"].item() == pytest.approx(0.75 * math.log(NUM_WORDS + 1000))
    assert terms.total.item() == pytest.approx(0.75 * math.log(NUM_WORDS + 1000) / 10)
    assert (terms.counts["sample"], terms.counts["box"]) == (2, 0)


def test_a_box_that_is_right_and_certain_costs_nothing() -> None:
    terms = one_box(Stage2Section(coord_w1_weight=1.0), certain_of(BINS))
    assert terms.total.item() == pytest.approx(0.0, abs=1e-5)
    assert terms.sums["loss/coord_mass"].item() == pytest.approx(4.0)


def test_box_terms_are_divided_by_the_boxes_of_the_step() -> None:
    shifted = (100, 200, 300, 300)  # half the height: IoU 1/2, hull = true box
    terms = one_box(
        Stage2Section(bbox_l1_weight=2, bbox_giou_weight=1, coord_gate_weight=0), certain_of(shifted), StepTotals(2, 5)
    )
    assert terms.sums["loss/bbox_l1"].item() == pytest.approx(100 / 999 / 4)
    assert terms.sums["loss/bbox_giou"].item() == pytest.approx(0.5, abs=1e-5)
    assert terms.total.item() == pytest.approx((2 * 100 / 999 / 4 + 0.5) / 5, rel=1e-4)


def test_the_gate_is_the_log_of_the_mass_inside_the_coordinates() -> None:
    terms = one_box(
        Stage2Section(bbox_l1_weight=0, bbox_giou_weight=0, coord_gate_weight=3),
        torch.zeros(4, NUM_WORDS + 1000),
        StepTotals(2, 5),
    )
    mass = 1000 / (NUM_WORDS + 1000)
    assert terms.sums["loss/coord_mass"].item() == pytest.approx(4 * mass)
    assert terms.sums["loss/coord"].item() == pytest.approx(-3 * 4 * math.log(mass), rel=1e-4)
    assert terms.total.item() == pytest.approx(-3 * math.log(mass) / 5, rel=1e-4)


def test_temperature_sharpens_the_expectation_and_leaves_the_gate_alone() -> None:
    scores = torch.zeros(4, NUM_WORDS + 1000)
    scores[:, NUM_WORDS] = 4.0
    warm, cold = (one_box(Stage2Section(softctx_temperature=tau), scores) for tau in (1.0, 0.1))
    assert cold.sums["loss/bbox_l1"].item() == pytest.approx(sum(BINS) / 4 / 999, rel=1e-3)  # all mass on bin 0
    assert warm.sums["loss/bbox_l1"].item() < cold.sums["loss/bbox_l1"].item()
    assert cold.sums["loss/coord"].item() == warm.sums["loss/coord"].item()


@pytest.mark.parametrize("name", ["bbox_l1", "bbox_giou", "coord_gate", "coord_soft_ce", "coord_w1"])
def test_each_weight_scales_its_own_term(name: str) -> None:
    scores = torch.randn(4, NUM_WORDS + 1000, generator=torch.Generator().manual_seed(0))
    none = Stage2Section(bbox_l1_weight=0, bbox_giou_weight=0, coord_gate_weight=0)
    one, three = (
        one_box(none.model_copy(update={f"{name}_weight": weight}), scores).total.item() for weight in (1.0, 3.0)
    )
    assert one_box(none, scores).total.item() == 0
    assert one > 0
    assert three == pytest.approx(3 * one, rel=1e-5)


def test_a_coordinate_term_without_a_weight_is_not_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(scored: Scored) -> Tensor:
        raise AssertionError("computed at weight 0")

    rows = [replace(term, compute=refuse) if term.logs_weighted else term for term in TERMS]
    monkeypatch.setattr("learner.losses.terms.TERMS", rows)
    scores = torch.zeros(4, NUM_WORDS + 1000)
    terms = one_box(Stage2Section(coord_gate_weight=0), scores)
    assert terms.sums["loss/coord"].item() == 0
    with pytest.raises(AssertionError, match="weight 0"):
        one_box(Stage2Section(coord_w1_weight=1), scores)


def test_a_term_may_read_another_column_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def labels(scored: Scored) -> Tensor:
        return scored.batch.labels.float().sum()

    monkeypatch.setattr("learner.losses.terms.TERMS", (*TERMS, Term("loss/ce", "sample", None, labels)))
    batch, scores = batch_of([1, 2, 3], [0.0] * 3, [], []), torch.zeros(3, NUM_WORDS + 1000)
    assert terms_of(scores, batch, StepTotals(3, 1), ONLY_CE).total.item() == pytest.approx(6 / 3)

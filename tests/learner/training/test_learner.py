"""One optimizer step: packs add up, weights move once, and never on a number that is not finite."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.channels.channel import Objective
from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass
from learner.losses.terms import PER, PackLoss
from learner.plan.step_plan import StepTotals
from learner.training.learner import Learner
from learner.training.optim import StepOptimizer
from shared.config.stage2 import Stage2Section
from shared.config.training import TrainingSection
from shared.errors import NonFiniteLoss


def learner_on(bench: Any, **keys: Any) -> Learner:
    training = TrainingSection(output_dir=Path("unused"), learning_rate=1e-3, lr_scheduler_type="constant", **keys)
    optimizer = StepOptimizer(bench.loaded, training, 10)
    return Learner(
        bench.loaded, optimizer, pad_token_id=bench.tokenizer.pad_token_id, max_grad_norm=training.max_grad_norm
    )


def channel_a(bench: Any) -> Objective:
    return Expectation(LastPass(Stage2Section(), bench.coordinate_ids), 2)


def weights_of(bench: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in bench.loaded.model.named_parameters()}


def test_a_step_in_three_packs_is_a_step_in_one(workbench_of: Any, pack_of: Any, step_totals_of: Any) -> None:
    moved, updates = [], []
    for cuts in ([0, 1, 3, 4], [0, 4]):
        bench = workbench_of()
        learner = learner_on(bench)
        samples = [bench.sample(seed, seed) for seed in range(4)]
        totals = step_totals_of(*samples)
        for start, end in pairwise(cuts):
            learner.accumulate(learner.lay_out(pack_of(*samples[start:end])), channel_a(bench), totals)
        updates.append(learner.update())
        moved.append(weights_of(bench))
    assert updates[0].loss == pytest.approx(updates[1].loss, rel=1e-5)
    assert updates[0].grad_norm == pytest.approx(updates[1].grad_norm, rel=1e-4)
    answer_weights = sum(sample.target.ce_denominator for sample in samples)
    counts = {"sample": answer_weights, "box": 6, "slot": 24, "answer": 0, "token": 0}
    assert {metric: count for metric, (_, count) in updates[0].terms.items()} == {
        metric: counts[per] for metric, per in PER.items()
    }
    # AdamW's first step is the learning rate times g / |g|: a part of it where a gradient is hardly more than rounding.
    for name, weight in moved[1].items():
        torch.testing.assert_close(moved[0][name], weight, rtol=0, atol=2.5e-4)


def test_an_abandoned_step_leaves_no_trace(workbench_of: Any, pack_of: Any, step_totals_of: Any) -> None:
    moved = []
    for begun in (False, True):
        bench = workbench_of()
        learner, totals = learner_on(bench), step_totals_of(bench.sample(1, 2))
        torch.manual_seed(7)
        for drawn in ("first", "second"):
            if begun and drawn == "second":
                before = torch.get_rng_state()
                learner.accumulate(learner.lay_out(pack_of(bench.sample(2, 3))), channel_a(bench), totals)
                torch.rand(5)  # a dropout's
                learner.abandon()
                assert torch.equal(torch.get_rng_state(), before)
            learner.accumulate(learner.lay_out(pack_of(bench.sample(1, 2))), channel_a(bench), totals)
            update = learner.update()
        moved.append((update.loss, weights_of(bench)))
    assert moved[0][0] == moved[1][0]
    assert all(torch.equal(moved[0][1][name], moved[1][1][name]) for name in moved[0][1])


def test_the_loss_is_made_of_its_reported_sums(workbench: Any, pack_of: Any, step_totals_of: Any) -> None:
    samples = [workbench.sample(seed, 2) for seed in range(3)]
    learner = learner_on(workbench)
    learner.accumulate(learner.lay_out(pack_of(*samples)), channel_a(workbench), step_totals_of(*samples))
    update = learner.update()
    sums = {metric: value for metric, (value, _) in update.terms.items()}
    boxes = 2.0 * sums["loss/bbox_l1"] + 1.0 * sums["loss/bbox_giou"]
    answer_weights = sum(sample.target.ce_denominator for sample in samples)
    assert update.loss == pytest.approx(
        sums["loss/ce"] / answer_weights + boxes / 6 + sums["loss/coord"] / 24, rel=1e-5
    )
    assert 0 < sums["loss/coord_mass"] <= 24


def test_a_lost_sample_counts_as_zero(workbench_of: Any, pack_of: Any, step_totals_of: Any) -> None:
    losses = []
    for planned in (1, 2):
        bench = workbench_of()
        learner, twins = learner_on(bench), [bench.sample(0, 2), bench.sample(0, 2)]
        learner.accumulate(learner.lay_out(pack_of(twins[0])), channel_a(bench), step_totals_of(*twins[:planned]))
        losses.append(learner.update().loss)
    assert losses[1] == pytest.approx(losses[0] / 2)


def test_a_step_without_any_pack_leaves_the_weights(workbench: Any) -> None:
    before, learner = weights_of(workbench), learner_on(workbench)
    update = learner.update()
    assert (update.loss, update.terms["loss/ce"], update.grad_norm) == (0.0, (0.0, 0), 0.0)
    assert all(weight.equal(before[name]) for name, weight in weights_of(workbench).items())


@pytest.mark.parametrize("bound", [1e-3, 0.0])
def test_gradients_are_clipped_and_the_norm_before_is_reported(
    workbench: Any, pack_of: Any, step_totals_of: Any, bound: float
) -> None:
    def norm() -> float:
        gradients = (p.grad for p in learner.optimizer.parameters if p.grad is not None)
        return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))

    learner, sample = learner_on(workbench, max_grad_norm=bound), workbench.sample(0, 2)
    seen: list[float] = []
    learner.optimizer.optimizers["adamw"].register_step_pre_hook(lambda *_: seen.append(norm()))
    learner.accumulate(learner.lay_out(pack_of(sample)), channel_a(workbench), step_totals_of(sample))
    before = norm()
    assert learner.update().grad_norm == pytest.approx(before, rel=1e-3)
    assert seen == pytest.approx([bound or before], rel=1e-3)


def test_a_loss_that_is_not_finite_names_its_records_and_moves_nothing(
    workbench: Any, pack_of: Any, step_totals_of: Any
) -> None:
    good, bad = workbench.sample(1, 2), workbench.sample(2, 1)
    broken = replace(bad, image=replace(bad.image, pixel_values=np.full_like(bad.image.pixel_values, np.nan)))
    learner, totals = learner_on(workbench, optim="muon"), step_totals_of(good, bad)
    before = weights_of(workbench)
    learner.accumulate(learner.lay_out(pack_of(good)), channel_a(workbench), totals)
    learner.accumulate(learner.lay_out(pack_of(broken)), channel_a(workbench), totals)
    with pytest.raises(NonFiniteLoss, match="made:2") as raised:
        learner.update()
    assert "made:1" not in str(raised.value)
    assert all(weight.equal(before[name]) for name, weight in weights_of(workbench).items())
    assert all(not state for each in learner.optimizer.optimizers.values() for state in each.state.values())
    learner.accumulate(learner.lay_out(pack_of(good)), channel_a(workbench), totals)
    assert math.isfinite(learner.update().loss)


def test_a_gradient_that_is_not_finite_stops_the_step_too(workbench: Any, pack_of: Any, step_totals_of: Any) -> None:
    class RootAtZero:
        """A finite loss whose slope is not."""

        def __call__(self, loaded: Any, batch: Any, totals: StepTotals) -> PackLoss:
            terms = channel_a(workbench)(loaded, batch, totals)
            return replace(terms, total=(terms.total - terms.total.detach()).sqrt())

    sample, before = workbench.sample(3, 1), weights_of(workbench)
    learner = learner_on(workbench)
    learner.accumulate(learner.lay_out(pack_of(sample)), RootAtZero(), step_totals_of(sample))
    with pytest.raises(NonFiniteLoss, match=r"made:3.*lower the learning rate"):
        learner.update()
    assert all(weight.equal(before[name]) for name, weight in weights_of(workbench).items())
    assert all(not state for each in learner.optimizer.optimizers.values() for state in each.state.values())


def test_the_report_holds_the_packs_size_and_times(workbench: Any, pack_of: Any, step_totals_of: Any) -> None:
    samples = [workbench.sample(seed, 1) for seed in range(2)]
    learner = learner_on(workbench)
    report = learner.accumulate(
        learner.lay_out(pack_of(*samples, capacity=900)), channel_a(workbench), step_totals_of(*samples)
    )
    assert (report.num_targets, report.capacity) == (2, 900)
    assert report.num_tokens == sum(sample.num_tokens for sample in samples)
    assert min(report.collate_s, report.forward_s, report.backward_s) > 0

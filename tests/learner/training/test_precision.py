"""Full training in bfloat16: products are rounded, what is trained is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass
from learner.training.learner import Learner
from learner.training.optim import StepOptimizer
from shared.config.stage2 import Stage2Section
from shared.config.training import TrainingSection


class Run:
    """Full training on one record after another."""

    def __init__(self, bench: Any, pack_of: Any, totals_of: Any, learning_rate: float) -> None:
        training = TrainingSection(
            output_dir=Path("unused"), learning_rate=learning_rate, lr_scheduler_type="constant", max_grad_norm=0
        )
        self.bench, self.pack_of, self.totals_of = bench, pack_of, totals_of
        self.optimizer = StepOptimizer(bench.loaded, training, 10)
        self.learner = Learner(bench.loaded, self.optimizer, pad_token_id=bench.tokenizer.pad_token_id)
        self.objective = Expectation(LastPass(Stage2Section(), bench.coordinate_ids), 2)

    def train(self, steps: int) -> list[float]:
        losses = []
        for step in range(steps):
            sample = self.bench.sample(step, 3)
            pack = self.learner.lay_out(self.pack_of(sample))
            self.learner.accumulate(pack, self.objective, self.totals_of(sample))
            losses.append(self.learner.update().loss)
        return losses


@pytest.fixture
def run_in(workbench_of: Any, pack_of: Any, step_totals_of: Any) -> Callable[[str, float], Run]:
    return lambda dtype, rate: Run(workbench_of(dtype=dtype), pack_of, step_totals_of, rate)


def test_losses_in_bfloat16_stay_close_to_those_in_float32(run_in: Callable[[str, float], Run]) -> None:
    exact, rounded = (run_in(dtype, 1e-3).train(6) for dtype in ("float32", "bfloat16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


def test_weights_and_optimizer_state_are_float32(run_in: Callable[[str, float], Run]) -> None:
    run = run_in("bfloat16", 1e-3)
    run.train(2)
    assert {parameter.dtype for parameter in run.bench.loaded.model.parameters()} == {torch.float32}
    states = [value for state in run.optimizer.optimizers["adamw"].state.values() for value in state.values()]
    assert {value.dtype for value in states} == {torch.float32}


def test_steps_too_small_for_bfloat16_add_up(run_in: Callable[[str, float], Run]) -> None:
    run = run_in("bfloat16", 1e-6)
    weight = run.bench.loaded.model.model.language_model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    run.train(3)
    large = before.abs() > 0.01  # where neighbours in bfloat16 are 6e-5 apart
    moved = (weight - before)[large].abs()
    assert len(moved) > 1000
    assert 0 < moved.mean() <= moved.max() < 1e-5
    assert (moved > 0).float().mean() > 0.9

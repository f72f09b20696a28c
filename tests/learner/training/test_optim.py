"""Parameter groups, Muon beside AdamW, and the learning-rate schedule."""

from pathlib import Path
from typing import Any

import pytest
import torch

from learner.families.load import load_model
from learner.model.freeze import freeze
from learner.training.muon import Float32Muon, orthogonalised
from learner.training.optim import MUON_LR_RATIO, StepOptimizer, parameter_groups
from shared.config.training import TrainingSection, TunerSection
from shared.errors import ConfigError
from shared.families.qwen3_vl import QWEN3_VL


def training(**keys: Any) -> TrainingSection:
    return TrainingSection(output_dir=Path("unused"), learning_rate=0.002, **keys)


def test_muon_takes_the_hidden_matrices_and_adamw_all_else(workbench: Any) -> None:
    model = workbench.loaded.model
    groups = parameter_groups(workbench.loaded, training(optim="muon"))
    taken = {name: group for group in groups for name in group.names}
    assert taken.keys() == dict(model.named_parameters()).keys()
    assert sum(len(group.names) for group in groups) == len(taken)
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        assert taken[name].optimizer == ("muon" if hidden else "adamw"), name
        assert taken[name].learning_rate == pytest.approx(0.002 * (MUON_LR_RATIO if hidden else 1))


def test_vision_tower_and_merger_have_rates_of_their_own(workbench: Any) -> None:
    groups = parameter_groups(workbench.loaded, training(optim="muon", vit_lr=0.001, aligner_lr=0.004))
    rates = {(group.optimizer, group.part): group.learning_rate for group in groups}
    assert rates["adamw", "llm"] == 0.002
    assert rates["adamw", "vit"] == 0.001
    assert rates["adamw", "aligner"] == 0.004
    assert rates["muon", "vit"] == pytest.approx(0.001 * MUON_LR_RATIO)


@pytest.mark.parametrize("coordinate_rows", [False, True])
def test_embeddings_and_head_have_a_rate_of_their_own_where_it_is_set(tiny_folder: Path, coordinate_rows: bool) -> None:
    loaded = load_model(str(tiny_folder), device="cpu", tuner=TunerSection(coordinate_rows=coordinate_rows))
    groups = parameter_groups(loaded, training(embed_lr=0.05))
    (embed,) = (group for group in groups if group.part == "embed")
    name = "trained_rows" if coordinate_rows else "weight"
    assert embed.names == (f"model.language_model.embed_tokens.{name}",)  # to which the head is tied
    assert embed.learning_rate == 0.05
    assert {group.learning_rate for group in groups if group is not embed} == {0.002}
    assert StepOptimizer(loaded, training(embed_lr=0.05), 10).learning_rate == 0.002
    assert "embed" not in {group.part for group in parameter_groups(loaded, training())}


def test_weight_decay_falls_on_matrices_only(workbench: Any) -> None:
    named = dict(workbench.loaded.model.named_parameters())
    for group in parameter_groups(workbench.loaded, training(weight_decay=0.1)):
        assert {named[name].ndim >= 2 for name in group.names} == {group.weight_decay == 0.1}


def test_the_rate_that_is_logged_is_the_language_models(workbench: Any) -> None:
    keys = training(optim="muon", vit_lr=0.001, aligner_lr=0.004)
    assert StepOptimizer(workbench.loaded, keys, 10).learning_rate == 0.002


def test_adapters_have_the_rates_of_their_parts_and_magnitudes_do_not_decay(tiny_folder: Path) -> None:
    tuner = TunerSection(train_type="lora", use_dora=True)
    loaded = load_model(str(tiny_folder), device="cpu", tuner=tuner)
    groups = parameter_groups(loaded, training(vit_lr=0.001, aligner_lr=0.004, weight_decay=0.1))
    rates = {"llm": 0.002, "vit": 0.001, "aligner": 0.004}
    assert {group.part: group.learning_rate for group in groups} == rates
    for group in groups:
        assert {QWEN3_VL.part_of(name) for name in group.names} == {group.part}
        assert all(("magnitude" in name) == (group.weight_decay == 0) for name in group.names)
    taken = {name for group in groups for name in group.names}
    assert taken == {name for name, _ in loaded.model.named_parameters() if ".lora_" in name}


def test_frozen_parts_are_in_no_group(workbench: Any) -> None:
    model = workbench.loaded.model
    freeze(model, QWEN3_VL, TunerSection(freeze_vit=True, freeze_aligner=True))
    assert {group.part for group in parameter_groups(workbench.loaded, training())} == {"llm"}
    freeze(model, QWEN3_VL, TunerSection(freeze_llm=True, freeze_vit=True, freeze_aligner=True))
    with pytest.raises(ConfigError, match="nothing to train"):
        StepOptimizer(workbench.loaded, training(), 10)


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("constant_with_warmup", [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("warmup_stable_decay", [0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_the_schedule_over_ten_steps(workbench: Any, kind: Any, factors: list[float]) -> None:
    keys = training(lr_scheduler_type=kind, warmup_ratio=0.2, lr_decay_ratio=0.4, optim="muon")
    optimizer = StepOptimizer(workbench.loaded, keys, num_steps=10)
    rates, muon_rates = [], []
    for _ in factors:
        rates.append(optimizer.learning_rate / 0.002)
        muon_rates.append(optimizer.optimizers["muon"].param_groups[0]["lr"] / (0.002 * MUON_LR_RATIO))
        optimizer.step()
    assert rates == pytest.approx(factors)
    assert muon_rates == pytest.approx(factors)
    optimizer.go_on_from(4)
    assert optimizer.learning_rate == pytest.approx(0.002 * factors[4])


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_in_float32_moves_as_torch_s_own_and_reads_its_state(shape: tuple[int, int]) -> None:
    """Within the rounding of bfloat16, in which torch orthogonalises."""
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(4)]
    weights, optimizers = [], []
    for kind in (torch.optim.Muon, Float32Muon):
        weight = torch.nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.1, weight_decay=0.01)
        for gradient in gradients[:3]:
            weight.grad = gradient.clone()
            optimizer.step()
        weights.append(weight)
        optimizers.append(optimizer)
    ours, theirs = weights[1] - start, weights[0] - start
    assert torch.linalg.norm(ours - theirs) < 0.02 * torch.linalg.norm(theirs)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    weights[1].grad = gradients[3]
    optimizers[1].step()


def test_what_muon_moves_by_is_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    update = orthogonalised(torch.randn(12, 40), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    singular = torch.linalg.svdvals(update)
    assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3

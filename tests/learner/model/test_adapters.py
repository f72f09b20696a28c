"""Which modules a LoRA run trains, and what stays as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass
from learner.families.load import load_model
from learner.model.adapters import adapted_layers
from learner.model.loaded import LoadedModel
from learner.model.tiny import build_tiny
from learner.packing.collate import collate
from shared.config.stage2 import Stage2Section
from shared.config.training import TunerSection
from shared.errors import ConfigError
from shared.families.qwen3_vl import QWEN3_VL

LAYER = "model.language_model.layers.0"
NUM_LINEAR = {"llm": 4 * 7, "vit": 2 * 4, "aligner": 2 * 2}
"""Linear layers of the tiny model without its head."""


@pytest.fixture
def load(tiny_folder: Path) -> Callable[..., LoadedModel]:
    def loaded(dtype: str = "float32", seed: int = 0, **keys: Any) -> LoadedModel:
        tuner = TunerSection(train_type="lora", **keys)
        return load_model(str(tiny_folder), dtype=dtype, device="cpu", tuner=tuner, seed=seed)

    return loaded


def trained(loaded: LoadedModel) -> set[str]:
    return {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}


def test_all_linear_means_every_linear_layer_but_the_head(load: Callable[..., LoadedModel]) -> None:
    loaded = load()
    parts = [QWEN3_VL.part_of(name) for name in adapted_layers(loaded.model)]
    assert {part: parts.count(part) for part in NUM_LINEAR} == NUM_LINEAR
    assert type(loaded.model.get_output_embeddings()) is torch.nn.Linear
    assert all(".lora_" in name for name in trained(loaded))


@pytest.mark.parametrize("part", ["llm", "vit", "aligner"])
def test_a_frozen_part_gets_no_adapters(load: Callable[..., LoadedModel], part: str) -> None:
    parts = [QWEN3_VL.part_of(name) for name in adapted_layers(load(**{f"freeze_{part}": True}).model)]
    assert {each: parts.count(each) for each in NUM_LINEAR} == NUM_LINEAR | {part: 0}


def test_modules_are_named_by_the_end_of_their_dotted_name(load: Callable[..., LoadedModel]) -> None:
    assert set(adapted_layers(load(target_modules=("layers.0.self_attn.q_proj", "o_proj")).model)) == {
        f"{LAYER}.self_attn.q_proj",
        *(f"model.language_model.layers.{i}.self_attn.o_proj" for i in range(4)),
    }
    towers = adapted_layers(load(target_modules=("proj",)).model)
    assert set(towers) == {f"model.visual.blocks.{i}.attn.proj" for i in range(2)}  # not the patch embedding


def test_a_regular_expression_matches_whole_names(load: Callable[..., LoadedModel]) -> None:
    assert set(adapted_layers(load(target_regex=r".*layers\.[01]\.mlp\.(up|gate)_proj").model)) == {
        f"model.language_model.layers.{i}.mlp.{name}_proj" for i in range(2) for name in ("up", "gate")
    }


def test_modules_to_save_are_trained_whole_even_in_frozen_parts(load: Callable[..., LoadedModel]) -> None:
    loaded = load(freeze_llm=True, freeze_vit=True, modules_to_save=("embed_tokens", "merger", "merger.norm"))
    whole = {name for name in trained(loaded) if ".lora_" not in name}
    assert whole == {
        "model.language_model.embed_tokens.weight",
        *(name for name, _ in loaded.model.named_parameters() if ".visual.merger." in name),
    }
    assert set(adapted_layers(loaded.model)) == {
        f"model.visual.deepstack_merger_list.0.linear_fc{number}" for number in (1, 2)
    }
    assert loaded.adapters is not None
    assert set(loaded.adapters.whole) == {"model.language_model.embed_tokens", "model.visual.merger"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"target_modules": ("q_prj",)}, r"target_modules: 'q_prj' .* nearest are q_proj"),
        ({"target_modules": ("all-linear", "qk_v")}, r"target_modules: 'qk_v' .* nearest are qkv"),
        ({"target_modules": ("qkv",), "freeze_vit": True}, r"target_modules: 'qkv' names no linear layer"),
        ({"target_modules": ("lm_head",)}, "target_modules: 'lm_head' names no linear layer"),
        ({"target_modules": ("patch_embed.proj",)}, "target_modules: 'patch_embed.proj' names no linear layer"),
        ({"target_regex": "q_proj"}, r"target_regex: 'q_proj' matches none .* whole names such as model\."),
        ({"modules_to_save": ("embed_token",)}, "modules_to_save: 'embed_token' .* nearest are embed_tokens"),
        ({"modules_to_save": ("lm_head",)}, "modules_to_save: lm_head is tied .* name embed_tokens"),
        ({"modules_to_save": ("model",)}, "no linear layer may have an adapter"),
    ],
)
def test_a_name_that_means_nothing_is_an_error_with_the_nearest(
    load: Callable[..., LoadedModel], keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load(**keys)


def test_initial_weights_depend_on_the_seed_alone(load: Callable[..., LoadedModel]) -> None:
    def first(seed: int) -> torch.Tensor:
        return adapted_layers(load(seed=seed).model)[f"{LAYER}.self_attn.q_proj"].lora_A["default"].weight

    torch.manual_seed(1)
    one = first(7)
    expected = torch.rand(2)
    torch.manual_seed(1)
    assert torch.rand(2).equal(expected)  # nothing was drawn from the process's own numbers
    assert first(7).equal(one)
    assert not first(8).equal(one)


def test_the_frozen_base_is_held_in_the_compute_type_and_what_is_trained_in_float32(
    load: Callable[..., LoadedModel],
) -> None:
    loaded = load("bfloat16", use_dora=True, modules_to_save=("merger",))
    types = {name: parameter.dtype for name, parameter in loaded.model.named_parameters()}
    assert {types[name] for name in trained(loaded)} == {torch.float32}
    held = {name for name, dtype in types.items() if dtype is torch.bfloat16}
    assert held == {
        "model.language_model.embed_tokens.weight",
        *(f"{name}.base_layer.weight" for name in adapted_layers(loaded.model)),
    }


@pytest.mark.parametrize("num_passes", [1, 2])
def test_holding_the_base_in_bfloat16_changes_no_loss(
    workbench_of: Callable[..., Any],
    pack_of: Callable[..., Any],
    step_totals_of: Callable[..., Any],
    tmp_path: Path,
    num_passes: int,
) -> None:
    bench = workbench_of()
    build_tiny(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({n: t.bfloat16().float() for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    sample = bench.sample(0, 3)
    objective = Expectation(LastPass(Stage2Section(), bench.coordinate_ids), num_passes)
    losses = []
    for tuner in (TunerSection(), TunerSection(train_type="lora")):
        loaded = load_model(str(tmp_path), dtype="bfloat16", device="cpu", tuner=tuner)
        losses.append(loss_of(loaded, objective, pack_of(sample), step_totals_of(sample), bench))
    assert losses[0] == losses[1]


def loss_of(loaded: LoadedModel, objective: Any, pack: Any, totals: Any, bench: Any) -> float:
    batch = collate(pack, loaded, pad_token_id=bench.tokenizer.pad_token_id, layout=loaded.layout)
    return objective(loaded, batch, totals).total.item()

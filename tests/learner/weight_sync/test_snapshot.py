"""Merged weights do alone what an adapted model does, and leave the learner's own as they are."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.families.load import load_model
from learner.model.adapters import adapted_layers
from learner.model.loaded import LoadedModel
from learner.weight_sync.file import FileOutlet
from learner.weight_sync.publisher import Snapshots, WeightPublisher
from learner.weight_sync.snapshot import full_weights, merged_weights, with_fused_siblings
from shared.config.training import TunerSection
from shared.digest import file_digest
from shared.families.qwen3_vl import QWEN3_VL
from shared.weight_wire import WEIGHTS_FILE

Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapted(tiny_folder: Path) -> Callable[..., LoadedModel]:
    """Load the tiny model with adapters that do something."""

    def load(dtype: str = "float32", **keys: Any) -> LoadedModel:
        tuner = TunerSection(train_type="lora", lora_rank=4, **keys)
        loaded = load_model(str(tiny_folder), dtype=dtype, device="cpu", tuner=tuner)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        return loaded

    return load


def logits(model: Any) -> torch.Tensor:
    """Of a text and an image, without dropout."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 300, (1, 30), generator=generator)
    ids[0, 5:9] = model.config.image_token_id
    pixels = torch.randn((16, 3 * 2 * 16 * 16), generator=generator)
    was_training = model.training
    with torch.no_grad():
        output = model.eval()(
            input_ids=ids,
            pixel_values=pixels,
            image_grid_thw=torch.tensor([[1, 4, 4]]),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
        )
    model.train(was_training)
    return output.logits


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(
    "beside", [{}, {"modules_to_save": ("embed_tokens", "merger", "patch_embed")}, {"coordinate_rows": True}]
)
def test_a_plain_model_with_the_merged_weights_computes_what_the_adapted_one_does(
    adapted: Callable[..., LoadedModel], tiny_folder: Path, use_dora: bool, beside: dict[str, Any]
) -> None:
    loaded = adapted(use_dora=use_dora, lora_dropout=0.5, **beside)
    plain = load_model(str(tiny_folder), dtype="float32", device="cpu").model
    expected, before = logits(loaded.model), logits(plain)
    largest = float(expected.abs().max())
    assert (expected - before).abs().max() > 0.1 * largest
    plain.load_state_dict(plain.state_dict() | merged_weights(loaded))
    # Adapters as large as these amplify the rounding of merged weights; by how much depends on the CPU's kernels.
    torch.testing.assert_close(logits(plain), expected, atol=1e-4 * largest, rtol=0)
    assert full_weights(loaded).keys() == dict(plain.named_parameters()).keys()
    assert all(tensor.equal(full_weights(loaded)[name]) for name, tensor in plain.named_parameters())


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_fresh_adapters_change_nothing(tiny_folder: Path, use_dora: bool) -> None:
    for dtype in ("float32", "bfloat16"):
        tuner = TunerSection(train_type="lora", use_dora=use_dora)
        loaded = load_model(str(tiny_folder), dtype=dtype, device="cpu", tuner=tuner)
        plain = full_weights(load_model(str(tiny_folder), dtype="float32", device="cpu"))
        for name, tensor in full_weights(loaded).items():
            assert tensor.equal(plain[name].to(tensor.dtype)), (dtype, name)


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
async def test_a_hundred_publishes_leave_every_weight_of_the_learner_as_it_was(
    adapted: Callable[..., LoadedModel], site_of: Callable[..., Any], use_dora: bool
) -> None:
    loaded = adapted(use_dora=use_dora)
    site = await site_of({})
    snapshots = Snapshots(partial(full_weights, loaded), partial(merged_weights, loaded))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    with closing(WeightPublisher(site.channels, FileOutlet(), site.root, snapshots, site.lane)) as publisher:
        for step in range(100):
            published = await publisher.publish_if_stale(step)
            if step == 1:
                first_merged = file_digest(site.root / f"{published.version.incarnation}-1-merged" / WEIGHTS_FILE)
        last_merged = file_digest(site.root / f"{published.version.incarnation}-99-merged" / WEIGHTS_FILE)
        assert await site.held() == [published.version]
    after = loaded.model.state_dict()
    assert after.keys() == before.keys()
    assert all(tensor.equal(before[name]) for name, tensor in after.items())
    assert last_merged == first_merged


def test_only_touched_modules_are_sent_with_those_fused_to_them(adapted: Callable[..., LoadedModel]) -> None:
    loaded = adapted(target_modules=("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj", "blocks.0.attn.qkv"))
    language, tower = "model.language_model.layers", "model.visual.blocks.0.attn"
    assert set(merged_weights(loaded)) == {
        *(f"{language}.0.self_attn.{name}_proj.weight" for name in "qkv"),
        f"{language}.1.mlp.gate_proj.weight",
        f"{language}.1.mlp.up_proj.weight",
        f"{tower}.qkv.weight",
        f"{tower}.qkv.bias",
    }
    saved = adapted(target_modules=("o_proj",), modules_to_save=("embed_tokens",))
    assert "model.language_model.embed_tokens.weight" in merged_weights(saved)
    assert len(merged_weights(saved)) == 5
    rows = adapted(target_modules=("o_proj",), coordinate_rows=True)
    assert merged_weights(rows).keys() == merged_weights(saved).keys()


def test_full_training_touches_all_that_is_not_frozen(tiny_folder: Path) -> None:
    loaded = load_model(str(tiny_folder), device="cpu", tuner=TunerSection(freeze_vit=True, freeze_llm=True))
    assert set(merged_weights(loaded)) == {name for name in full_weights(loaded) if "merger" in name}
    everything = load_model(str(tiny_folder), device="cpu")
    assert merged_weights(everything).keys() == full_weights(everything).keys()


def test_weights_are_cast_once_to_the_type_the_base_is_held_in(adapted: Callable[..., LoadedModel]) -> None:
    loaded = adapted("bfloat16", target_modules=("q_proj",), modules_to_save=("norm",))
    layer = adapted_layers(loaded.model)[Q_PROJ]
    exact = layer.base_layer.weight.double() + layer.scaling["default"] * (
        layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    )
    merged = merged_weights(loaded)
    assert merged[f"{Q_PROJ}.weight"].dtype is torch.bfloat16
    off = merged[f"{Q_PROJ}.weight"].double() - exact
    assert (off.abs() <= 2.0**-8 * exact.abs() * 1.001).all()
    assert merged["model.language_model.norm.weight"].dtype is torch.float32


def test_fused_siblings_are_found_by_name() -> None:
    assert with_fused_siblings({"a.k_proj", "b.up_proj", "c.o_proj"}, QWEN3_VL.fused) == {
        *("a.q_proj", "a.k_proj", "a.v_proj", "b.gate_proj", "b.up_proj", "c.o_proj")
    }

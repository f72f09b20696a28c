"""The parts of a Qwen3-VL by name."""

import pytest

from shared.families.qwen3_vl import QWEN3_VL


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "llm"),
        ("model.language_model.embed_tokens.weight", "llm"),
        ("lm_head.weight", "llm"),
        ("model.visual.blocks.0.attn.qkv.weight", "vit"),
        ("model.visual.patch_embed.proj.weight", "vit"),
        ("model.visual.merger.linear_fc1.weight", "aligner"),
        ("model.visual.deepstack_merger_list.0.norm.bias", "aligner"),
        ("model.visual.merger", "aligner"),
        ("model.visual.blocks.0.attn.qkv.lora_A.default.weight", "vit"),
    ],
)
def test_parts_of_the_model_by_name(name: str, part: str) -> None:
    assert QWEN3_VL.part_of(name) == part

"""Qwen3-VL as it is trained: its positions and patches, against transformers' own."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from learner.families.qwen3_vl import Qwen3VL
from learner.model.batch import PatchLayout
from learner.packing.collate import collate
from shared.errors import DataError

IMAGE = 9
BARE: Any = SimpleNamespace(
    config=SimpleNamespace(image_token_id=IMAGE, vision_config=SimpleNamespace(spatial_merge_size=2))
)
"""What positions are worked out from."""


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 8, 8), (1, 4, 12), (1, 16, 2)])
def test_positions_are_the_models_own(workbench: Any, grid: tuple[int, int, int]) -> None:
    loaded, sample = workbench.loaded, workbench.sample(1, 2, grid=grid)
    ids = torch.tensor([sample.target.token_ids])
    types = (ids == loaded.image_token_id).int()
    expected, _ = loaded.model.model.get_rope_index(ids, types, image_grid_thw=torch.tensor([grid]))
    found = loaded.family.positions(loaded.model, ids[0].numpy(), grid)
    np.testing.assert_array_equal(found, expected[:, 0])


@pytest.mark.parametrize("ids", [[1, 2], [IMAGE] * 3, [IMAGE, IMAGE, 1, IMAGE, IMAGE], [IMAGE] * 5])
def test_placeholders_that_do_not_fit_the_image_are_an_error_with_both_numbers(ids: list[int]) -> None:
    with pytest.raises(DataError, match=rf"run of 4 .* holds {ids.count(IMAGE)}"):
        Qwen3VL().positions(BARE, np.array(ids), (1, 4, 4))


@pytest.mark.parametrize("attn_impl", ["matmul", "sdpa", "varlen"])
def test_patches_that_are_laid_out_ahead_give_the_features_that_the_tower_gives_alone(
    workbench: Any, pack_of: Any, attn_impl: str
) -> None:
    loaded = workbench.loaded
    samples = [workbench.sample(0, 1), workbench.sample(1, 1, grid=(1, 4, 8))]
    batch = collate(pack_of(*samples), loaded, pad_token_id=0)
    loaded.model.set_attn_implementation(attn_impl)
    layout = loaded.family.lay_out_patches(loaded.model, batch.image_grid)
    assert ("cu_seqlens" in layout.on_host) == (attn_impl != "varlen")
    loaded.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        ahead, alone = (
            loaded.family.encode_images(loaded.model, replace(batch, patches=patches))
            for patches in (layout, PatchLayout({}))
        )
    assert ahead.embeds.equal(alone.embeds)
    assert all(ours.equal(theirs) for ours, theirs in zip(ahead.deepstack, alone.deepstack, strict=True))
    assert len(ahead.deepstack) == 1

"""Qwen3-VL in training: deepstack features, three rotary axes, and patches that are laid out on the host."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from learner.families.qwen3_vl_kernels import exchange_kernels
from learner.model.attention import VARLEN_ATTENTION
from learner.model.batch import ImageFeatures, Ints, PackedBatch, PatchLayout
from learner.model.family import VisionLanguageModel
from learner.types import Grid
from shared.errors import DataError
from shared.families.qwen3_vl import QWEN3_VL


class Qwen3VL:
    """Family (see model/family.py) of transformers' Qwen3VLForConditionalGeneration."""

    facts = QWEN3_VL

    def use_fast_kernels(self, model: VisionLanguageModel) -> None:
        exchange_kernels(model)

    def positions(self, model: VisionLanguageModel, token_ids: Ints, grid: Grid) -> Ints:
        """Rotary positions [3, T]: text counts on in all three; an image holds its start in time and adds its row and
        column; the text after it goes on behind the image's longer side. Equal to the model's `get_rope_index`.

        Raises DataError when the placeholders are not one run as long as the grid.
        """
        config = model.config
        merge_size = config.vision_config.spatial_merge_size
        t, h, w = grid[0], grid[1] // merge_size, grid[2] // merge_size
        places = np.flatnonzero(token_ids == config.image_token_id)
        if len(places) != t * h * w or places[-1] - places[0] + 1 != len(places):
            raise DataError(
                f"the image of {grid} patches needs one run of {t * h * w} image placeholders, "
                f"but the prompt holds {len(places)}; encode prompt and image with one processor"
            )
        start = int(places[0])
        positions = np.empty((3, len(token_ids)), dtype=np.int64)
        positions[:, :start] = np.arange(start)
        positions[:, places] = np.indices((t, h, w)).reshape(3, -1) + start
        tail = len(token_ids) - start - len(places)
        positions[:, start + len(places) :] = np.arange(tail) + start + max(h, w)
        return positions

    def lay_out_patches(self, model: VisionLanguageModel, grids: Tensor) -> PatchLayout:
        tower = model.model.visual
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.spatial_merge_size,
        )
        cu_seqlens = get_vision_cu_seqlens(grids)
        arguments = {
            "interp_indices": indices,  # int64 [P, 4]: the learned positions around each patch
            "interp_weights": weights,  # float32 [P, 4]: the share of each
            "position_ids": get_vision_position_ids(grids, tower.spatial_merge_size),  # int64 [P, 2]: rows, columns
            "cu_seqlens": cu_seqlens,  # int32 [images + 1]: where images begin, and their end
            "max_seqlen": int(cu_seqlens.diff().max()),
        }
        return PatchLayout(arguments, frozenset() if _attends_by_borders(tower.config) else frozenset({"cu_seqlens"}))

    def encode_images(self, model: VisionLanguageModel, batch: PackedBatch) -> ImageFeatures:
        output = model.model.visual(
            batch.pixel_values, grid_thw=batch.image_grid, return_dict=True, **batch.patches.arguments
        )
        return ImageFeatures(output.pooler_output, tuple(output.deepstack_features))

    def hidden_states(
        self,
        model: VisionLanguageModel,
        batch: PackedBatch,
        embeds: Tensor,
        images: ImageFeatures,
        attention: Mapping[str, Any],
    ) -> Tensor:
        output = model.model.language_model(
            inputs_embeds=embeds,
            position_ids=batch.position_ids,
            visual_pos_masks=batch.image_positions,
            deepstack_visual_embeds=list(images.deepstack),
            use_cache=False,
            **attention,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


def _attends_by_borders(config: Any) -> bool:
    """Whether the tower's attention takes the borders of images as a tensor, instead of cutting by their values."""
    return bool(is_flash_attention_requested(config)) or config._attn_implementation == VARLEN_ATTENTION

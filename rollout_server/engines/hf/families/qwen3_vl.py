"""Qwen3-VL under transformers: three rotary axes, and deepstack features for the first decoder layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rollout_server.engines.prompt_rules import Grid


class Qwen3VL:
    """DecodedFamily (see family.py) of Qwen3VLForConditionalGeneration."""

    num_axes = 3

    def positions(self, model: Any, token_ids: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, int]:
        positions, deltas = model.model.get_rope_index(
            token_ids[None],
            mm_token_type_ids=(token_ids == model.config.image_token_id).int()[None],
            image_grid_thw=torch.tensor(grids),
        )
        return positions[:, 0], int(deltas[0, 0])

    def fill_images(
        self, model: Any, embeds: Tensor, placeholders: Tensor, pixels: Tensor, grids: Tensor
    ) -> dict[str, Any]:
        output = model.model.get_image_features(pixels, grids, return_dict=True)
        embeds[placeholders] = torch.cat(output.pooler_output).to(embeds.dtype)
        # transformers splits the deepstack features by image from 5.2x on; before, they are whole.
        deepstack = [part if isinstance(part, Tensor) else torch.cat(part) for part in output.deepstack_features]
        return {"visual_pos_masks": placeholders, "deepstack_visual_embeds": deepstack}

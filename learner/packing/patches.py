"""Where the patches of a pack's images stand, worked out on the host before a step runs.

A vision tower derives this from the images' grids by looking at their values, and so makes the host wait for the device
in the middle of the step. What it is given it does not derive.
"""

from typing import Any

from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from learner.model.attention import VARLEN_ATTENTION
from learner.model.batch import PatchLayout


def patch_layout(tower: Any, image_grid: Tensor) -> PatchLayout:
    """Lay out the patches of images of these grids (int64 [images, 3], on the host) for a Qwen3-VL vision tower."""
    indices, weights = get_vision_interpolation_indices_and_weights(
        image_grid,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=tower.spatial_merge_size,
    )
    cu_seqlens = get_vision_cu_seqlens(image_grid)
    return PatchLayout(
        interp_indices=indices,
        interp_weights=weights,
        position_ids=get_vision_position_ids(image_grid, tower.spatial_merge_size),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(cu_seqlens.diff().max()),
        cut_on_host=not (
            is_flash_attention_requested(tower.config) or tower.config._attn_implementation == VARLEN_ATTENTION
        ),
    )

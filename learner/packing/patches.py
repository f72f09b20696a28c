"""Where the patches of a pack's images stand, worked out on the host before a step runs.

A vision tower derives this from the images' grids by looking at their values, and so makes the host wait for the device
in the middle of the step. What it is given it does not derive.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from learner.model.varlen import VARLEN_ATTENTION


@dataclass(frozen=True)
class PatchLayout:
    """The places of P patches, named as a vision tower's arguments."""

    interp_indices: Tensor
    """int64 [P, 4]: the learned positions around each patch"""
    interp_weights: Tensor
    """float32 [P, 4]: the share of each"""
    position_ids: Tensor
    """int64 [P, 2]: rows and columns"""
    cu_seqlens: Tensor
    """int32 [images + 1]: where images begin, and their end"""
    max_seqlen: int
    cut_on_host: bool
    """whether the attention cuts images apart by the values of `cu_seqlens`, which then stays on the host"""

    def to(self, device: torch.device) -> "PatchLayout":
        """The same with its tensors where they are read."""
        return replace(
            self,
            interp_indices=self.interp_indices.to(device, non_blocking=True),
            interp_weights=self.interp_weights.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens if self.cut_on_host else self.cu_seqlens.to(device, non_blocking=True),
        )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the vision tower."""
        return {
            "interp_indices": self.interp_indices,
            "interp_weights": self.interp_weights,
            "position_ids": self.position_ids,
            "cu_seqlens": self.cu_seqlens,
            "max_seqlen": self.max_seqlen,
        }


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

"""What a model is fed: one pack of targets as tensors."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Layout = Literal["rows", "flat"]
"""rows: one target a row, padded on the right · flat: all targets in one row, end to end."""

Ints = NDArray[np.int64]


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


@dataclass(frozen=True)
class PackedBatch:
    """One pack as tensors. R rows of T columns hold n targets with S supervised positions and b boxes.

    A supervised position is a token that is predicted with a loss; each stands once, however many terms it serves.
    """

    record_ids: tuple[str, ...]
    layout: Layout
    input_ids: Tensor
    """int64 [R, T]"""
    position_ids: Tensor
    """int64 [3, R, T]: temporal, height and width positions, starting at 0 with each target"""
    cu_seqlens: Tensor
    """int32 [n + 1]: where targets begin in a flat row, and its end"""
    max_seqlen: int
    image_positions: Tensor
    """int64 [P]: places of the image placeholders in the flattened [R · T], ascending"""
    pixel_values: Tensor
    """float32 [patches of all images, patch_dim]"""
    image_grid: Tensor
    """int64 [n, 3]: (t, h, w) in patches; always on the host, where its values are read"""
    predictor_rows: Tensor
    """int64 [S]: row of the token *before* the supervised one; its output predicts"""
    predictor_columns: Tensor
    """int64 [S]"""
    labels: Tensor
    """int64 [S]: ids of the supervised tokens"""
    ce_weights: Tensor
    """float32 [S]: w_t / W_s; 0 where only a coordinate is supervised. The division by N is the objective's."""
    box_slots: Tensor
    """int64 [b, 4]: the box's coordinates x1, y1, x2, y2 as indices into S"""
    box_bins: Tensor
    """int64 [b, 4]: their true bins"""
    patches: PatchLayout | None = None
    """set where the images are laid out ahead of the step, see learner/training/learner.py"""

    @property
    def num_samples(self) -> int:
        return len(self.record_ids)

    @property
    def num_boxes(self) -> int:
        return self.box_slots.shape[0]

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch with all that a step reads on `device`."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, patches=self.patches and self.patches.to(device))

    def pinned(self) -> "PackedBatch":
        """The same batch in page-locked memory, from which a device copies while the host goes on."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PackedBatch":
        """The same batch with its tensors changed, but for what stays on the host."""
        names = (field.name for field in fields(self) if field.name not in ("image_grid", "patches"))
        tensors = {name: getattr(self, name) for name in names}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **changed)

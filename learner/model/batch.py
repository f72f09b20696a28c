"""What a model is fed: one pack of targets as tensors."""

from collections.abc import Callable, Mapping
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
    """Where the patches of a pack's images stand, worked out on the host before a step runs.

    A vision tower derives this from the images' grids by looking at their values, and so makes the host wait for the
    device in the middle of the step. What it is given it does not derive. For a tower that cuts its attention by image:

        PatchLayout({"position_ids": …, "cu_seqlens": …, "max_seqlen": 64}, on_host=frozenset({"cu_seqlens"}))
    """

    arguments: Mapping[str, Tensor | int]
    """keyword arguments of the family's vision tower"""
    on_host: frozenset[str] = frozenset()
    """those whose values the tower reads on the host, where they stay"""

    def to(self, device: torch.device) -> "PatchLayout":
        """The same with its tensors where they are read."""
        moved = {
            name: value.to(device, non_blocking=True)
            if isinstance(value, Tensor) and name not in self.on_host
            else value
            for name, value in self.arguments.items()
        }
        return replace(self, arguments=moved)


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision tower makes of a pack's images, a row for each image placeholder in reading order.

    `embeds` is [placeholders, hidden]; `deepstack` holds as much again for each of the first decoder layers to which a
    family adds image features, none in most families.

        ImageFeatures(embeds of [512, 2048], deepstack=(three of [512, 2048]))     # two images of 256 merged patches
    """

    embeds: Tensor
    deepstack: tuple[Tensor, ...] = ()

    def detach(self) -> "ImageFeatures":
        """The same features without their history."""
        return ImageFeatures(self.embeds.detach(), tuple(each.detach() for each in self.deepstack))


@dataclass(frozen=True)
class PackedBatch:
    """One pack as tensors. R rows of T columns hold n targets with S supervised positions and b boxes.

    A supervised position is a token that is predicted with a loss; each stands once, however many terms it serves.

        PackedBatch(record_ids=("train:17", "train:4"), layout="rows", input_ids of [2, 512], …, labels of [96],
                    box_slots=[[12, 13, 14, 15], …], box_bins=[[110, 310, 410, 705], …])
    """

    record_ids: tuple[str, ...]
    layout: Layout
    input_ids: Tensor
    """int64 [R, T]"""
    position_ids: Tensor
    """int64 [axes, R, T]: rotary positions, such as time, height and width, starting at 0 with each target"""
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
    """float32 [S]: w_t; 0 where only a coordinate is supervised"""
    box_slots: Tensor
    """int64 [b, 4]: the box's coordinates x1, y1, x2, y2 as indices into S"""
    box_bins: Tensor
    """int64 [b, 4]: their true bins"""
    sampled: Tensor
    """bool [S]: whether the token was sampled by a policy that is to be paid for it"""
    advantages: Tensor
    """float32 [S]: how much likelier a sampled token is to become; 0 elsewhere"""
    served_logprobs: Tensor
    """float32 [S]: log-probability of a sampled token where it was decoded; NaN = that of the policy that learns"""
    num_answers: int
    """targets that were sampled"""
    num_sampled_tokens: int
    patches: PatchLayout

    @property
    def num_samples(self) -> int:
        """Targets that are supervised."""
        return len(self.record_ids) - self.num_answers

    @property
    def num_boxes(self) -> int:
        return self.box_slots.shape[0]

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch with all that a step reads on `device`."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, patches=self.patches.to(device))

    def pinned(self) -> "PackedBatch":
        """The same batch in page-locked memory, from which a device copies while the host goes on."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PackedBatch":
        """The same batch with its tensors changed, but for what stays on the host."""
        names = (field.name for field in fields(self) if field.name not in ("image_grid", "patches"))
        tensors = {name: getattr(self, name) for name in names}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **changed)

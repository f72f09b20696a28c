"""What a family of models must offer to be trained here; `learner/families/` has a file for each."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from learner.model.batch import ImageFeatures, Ints, PackedBatch, PatchLayout
from learner.types import Grid
from shared.families.facts import FamilyFacts


class VisionLanguageModel(Protocol):
    """What is used of transformers' model, whatever its family."""

    config: Any
    model: Any
    """what lies under the head; its parts are known to the family alone"""

    def get_input_embeddings(self) -> nn.Embedding: ...
    def get_output_embeddings(self) -> nn.Linear: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def modules(self) -> Iterator[Any]: ...
    def get_submodule(self, target: str) -> Any: ...
    def set_submodule(self, target: str, module: nn.Module) -> None: ...
    def requires_grad_(self, requires_grad: bool) -> Any: ...
    def zero_grad(self, set_to_none: bool) -> None: ...
    def to(self, target: torch.device | torch.dtype) -> Any: ...
    def train(self) -> Any: ...
    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any]) -> None: ...
    def save_pretrained(self, save_directory: Any) -> Any: ...


class Family(Protocol):
    """One family. It keeps nothing of a model: `model` is one of its own, wherever it is given one."""

    @property
    def facts(self) -> FamilyFacts: ...

    def use_fast_kernels(self, model: VisionLanguageModel) -> None:
        """Exchange kernels in place for faster ones of the same mathematics, under the same names of weights."""

    def positions(self, model: VisionLanguageModel, token_ids: Ints, grid: Grid) -> Ints:
        """Rotary positions [axes, T] of one target with one image; a model without axes has one.

        Raises DataError when the placeholders in `token_ids` [T] do not fit the image's grid.
        """
        ...

    def lay_out_patches(self, model: VisionLanguageModel, grids: Tensor) -> PatchLayout:
        """Lay out the patches of images of these grids, int64 [images, 3], without looking at values on a device."""
        ...

    def encode_images(self, model: VisionLanguageModel, batch: PackedBatch) -> ImageFeatures:
        """Run the vision tower over all images of a pack."""
        ...

    def hidden_states(
        self,
        model: VisionLanguageModel,
        batch: PackedBatch,
        embeds: Tensor,
        images: ImageFeatures,
        attention: Mapping[str, Any],
    ) -> Tensor:
        """Run the decoder over input embeddings; returns its normalised last layer [R, T, hidden].

        `attention` are the arguments by which its attention keeps targets apart.
        """
        ...

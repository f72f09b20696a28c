"""A model in memory, and what the code around it asks about it."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from learner.model.adapters import Adapters
from learner.model.batch import Layout
from learner.model.family import Family, VisionLanguageModel


@dataclass(frozen=True)
class LoadedModel:
    """A model of some family and what the code around it asks about it.

    `model` is transformers' own module with its own parameter names, adapters injected in place if there are any;
    trained weights are float32 whatever `compute_dtype` says. `name` is the checkpoint it came from, an absolute
    directory or a hub id, and `folder` where that lies on this machine. `adapters` is None where training is full.
    `image_token_id` is the placeholder that stands in a prompt for each row of an image's features.
    """

    family: Family
    model: VisionLanguageModel
    name: str
    folder: Path
    device: torch.device
    compute_dtype: torch.dtype
    image_token_id: int
    adapters: Adapters | None = None

    @property
    def layout(self) -> Layout:
        """Padded rows on a CPU, where attention over one long row costs more than padding does."""
        return "rows" if self.device.type == "cpu" else "flat"

    @property
    def attn_impl(self) -> str:
        """Name of the attention that transformers dispatches to."""
        return str(self.model.config.text_config._attn_implementation)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which matrix products run in `compute_dtype`."""
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)

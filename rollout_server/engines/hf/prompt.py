"""From a request to what the model takes: placeholders expanded, images as patches, rotary positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rollout_server.engines.base import EngineRequest
from rollout_server.engines.hf.families.family import DecodedFamily
from rollout_server.engines.prompt_rules import Grid, PromptRules
from shared.wire import ServerLimits


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for prefill, on the CPU.

    `token_ids` [length] holds one placeholder a merged patch, `pixel_values` is [patches, patch_dim] or None,
    `positions` are [axes, length]. Token i of the answer stands at position length + i + `delta`.
    """

    token_ids: Tensor
    pixel_values: Tensor | None
    image_grid: tuple[Grid, ...]
    positions: Tensor
    delta: int

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


class PromptBuilder:
    """Builds prompts as transformers' own processor would; touches no weights, so any thread may call it."""

    def __init__(self, model: Any, family: DecodedFamily, image_processor: Any, limits: ServerLimits) -> None:
        self._model = model
        self._family = family
        self._processor = image_processor
        self._rules = PromptRules(
            vocab_size=model.config.text_config.vocab_size,
            image_token_id=model.config.image_token_id,
            video_token_id=model.config.video_token_id,
            vision_start_token_id=model.config.vision_start_token_id,
            vision_end_token_id=model.config.vision_end_token_id,
            patch_size=image_processor.patch_size,
            merge_size=image_processor.merge_size,
            min_pixels=image_processor.size["shortest_edge"],
            limits=limits,
        )

    def canary_request(self) -> EngineRequest:
        """See `PromptRules`."""
        return self._rules.canary_request()

    def build(self, request: EngineRequest) -> Prompt:
        """Return the prompt of `request`; raises SampleRejected for an id, an image or a length that does not fit."""
        self._rules.check_ids(request)
        patches, grids = self._patches([self._rules.open_image(data) for data in request.images])
        token_ids = torch.tensor(self._rules.expanded(request.prompt_token_ids, grids), dtype=torch.long)
        self._rules.check_length(len(token_ids), request.sampling.max_new_tokens)
        positions, delta = self._positions(token_ids, grids)
        return Prompt(token_ids, patches, grids, positions, delta)

    def _patches(self, images: Sequence[Image.Image]) -> tuple[Tensor | None, tuple[Grid, ...]]:
        if not images:
            return None, ()
        features = self._processor(images=[np.asarray(image) for image in images], input_data_format="channels_last")
        grids = tuple((int(t), int(h), int(w)) for t, h, w in features["image_grid_thw"])
        for image, grid in zip(images, grids, strict=True):
            self._rules.check_grid(image, grid)
        return torch.from_numpy(np.asarray(features["pixel_values"])), grids

    def _positions(self, token_ids: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, int]:
        if not grids:
            return torch.arange(len(token_ids)).expand(self._family.num_axes, -1), 0
        return self._family.positions(self._model, token_ids, grids)

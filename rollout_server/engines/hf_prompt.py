"""From a request to what the model takes: placeholders expanded, images as patches, multimodal positions."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rollout_server.engines.base import EngineRequest, SampleRejected
from shared.wire import ServerLimits

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for prefill, on the CPU.

    `token_ids` [length] holds one placeholder a merged patch, `pixel_values` is [patches, patch_dim] or None,
    `positions` [3, length] are m-rope's (t, h, w). Token i of the answer stands at position length + i + `delta`.
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

    def __init__(self, model: Any, image_processor: Any, limits: ServerLimits) -> None:
        self._model = model
        self._processor = image_processor
        self._limits = limits
        self._image_token_id: int = model.config.image_token_id
        self._vocab_size: int = model.config.text_config.vocab_size

    def build(self, request: EngineRequest) -> Prompt:
        """Return the prompt of `request`; raises SampleRejected for an id, an image or a length that does not fit."""
        self._check_ids(request)
        patches, grids = self._patches([self._opened(data) for data in request.images])
        token_ids = torch.tensor(self._expanded(request.prompt_token_ids, grids), dtype=torch.long)
        needed = len(token_ids) + request.sampling.max_new_tokens
        if needed > self._limits.max_model_len:
            raise SampleRejected(
                "prompt_too_long",
                f"{len(token_ids)} prompt tokens and {request.sampling.max_new_tokens} new ones exceed "
                f"max_model_len {self._limits.max_model_len}",
            )
        positions, delta = self._positions(token_ids, grids)
        return Prompt(token_ids, patches, grids, positions, delta)

    def _check_ids(self, request: EngineRequest) -> None:
        sampling = request.sampling
        listed = (*request.prompt_token_ids, *sampling.banned_token_ids, *sampling.stop_token_ids)
        unknown = [token_id for token_id in listed if not 0 <= token_id < self._vocab_size]
        if unknown:
            raise SampleRejected("unknown_token_id", f"ids {unknown[:8]} are not in 0..{self._vocab_size - 1}")
        if self._model.config.video_token_id in request.prompt_token_ids:
            raise SampleRejected("bad_placeholders", "the prompt holds a video placeholder; only images are decoded")
        placeholders = request.prompt_token_ids.count(self._image_token_id)
        if placeholders != len(request.images):
            raise SampleRejected(
                "bad_placeholders",
                f"{placeholders} image placeholders for {len(request.images)} images; send one unexpanded id an image",
            )
        if len(request.images) > self._limits.max_images_per_sample:
            raise SampleRejected(
                "bad_image", f"{len(request.images)} images exceed the limit of {self._limits.max_images_per_sample}"
            )

    def _opened(self, data: bytes) -> Image.Image:
        try:
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                width, height = image.size
                if width * height > self._limits.max_image_pixels:
                    raise SampleRejected(
                        "bad_image", f"{width}×{height} px exceed the limit of {self._limits.max_image_pixels} px"
                    )
                return image.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise SampleRejected("bad_image", f"not a readable {'/'.join(IMAGE_FORMATS)} image: {error}") from error

    def _patches(self, images: Sequence[Image.Image]) -> tuple[Tensor | None, tuple[Grid, ...]]:
        if not images:
            return None, ()
        features = self._processor(images=[np.asarray(image) for image in images], input_data_format="channels_last")
        grids = tuple((int(t), int(h), int(w)) for t, h, w in features["image_grid_thw"])
        patch = self._processor.patch_size
        for image, (_, rows, columns) in zip(images, grids, strict=True):
            if image.size != (columns * patch, rows * patch):
                raise SampleRejected(
                    "bad_image",
                    f"the processor would resize {image.width}×{image.height} px to {columns * patch}×{rows * patch}; "
                    "send the image at a size it leaves as it is",
                )
        return torch.from_numpy(np.asarray(features["pixel_values"])), grids

    def _expanded(self, token_ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        merged = self._processor.merge_size**2
        counts = iter(t * h * w // merged for t, h, w in grids)
        expanded: list[int] = []
        for token_id in token_ids:
            expanded.extend([token_id] * (next(counts) if token_id == self._image_token_id else 1))
        return expanded

    def _positions(self, token_ids: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, int]:
        if not grids:
            return torch.arange(len(token_ids)).expand(3, -1), 0
        positions, deltas = self._model.model.get_rope_index(
            token_ids[None],
            mm_token_type_ids=(token_ids == self._image_token_id).int()[None],
            image_grid_thw=torch.tensor(grids),
        )
        return positions[:, 0], int(deltas[0, 0])

"""Which requests are well-formed for a checkpoint, and how a prompt grows by its images; no model needed."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from rollout_server.engines.base import EngineRequest, SampleRejected
from shared.checkpoint_facts import image_processor_of
from shared.errors import ConfigError
from shared.families.table import facts_of
from shared.images import BadImage, check_aspect_ratio, open_image
from shared.wire import Sampling, ServerLimits

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")

Grid = tuple[int, int, int]
"""(t, h, w) of an image in patches."""


@dataclass(frozen=True)
class PromptRules:
    """The checks common to all engines. Sizes are those of the image processor."""

    vocab_size: int
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    patch_size: int
    merge_size: int
    min_pixels: int
    limits: ServerLimits

    def check_ids(self, request: EngineRequest) -> None:
        """Raise SampleRejected for an unknown id or for placeholders that do not match the images."""
        sampling = request.sampling
        listed = (*request.prompt_token_ids, *sampling.banned_token_ids, *sampling.stop_token_ids)
        unknown = [token_id for token_id in listed if not 0 <= token_id < self.vocab_size]
        if unknown:
            raise SampleRejected("unknown_token_id", f"ids {unknown[:8]} are not in 0..{self.vocab_size - 1}")
        if self.video_token_id in request.prompt_token_ids:
            raise SampleRejected("bad_placeholders", "the prompt holds a video placeholder; only images are decoded")
        placeholders, images = request.prompt_token_ids.count(self.image_token_id), len(request.images)
        if placeholders != images:
            raise SampleRejected(
                "bad_placeholders",
                f"{placeholders} image placeholders for {images} images; send one unexpanded id an image",
            )
        if images > self.limits.max_images_per_sample:
            raise SampleRejected("bad_image", f"{images} images exceed the limit {self.limits.max_images_per_sample}")

    def open_image(self, data: bytes) -> Image.Image:
        """Decode an image file to RGB; raises SampleRejected for a broken, too large or unaligned one."""
        try:
            return open_image(data, self._check_size, IMAGE_FORMATS).image
        except BadImage as error:
            raise SampleRejected("bad_image", f"not a readable {'/'.join(IMAGE_FORMATS)} image: {error}") from error

    def expanded(self, token_ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """Repeat each image placeholder once a merged patch of its image."""
        counts = iter(t * h * w // self.merge_size**2 for t, h, w in grids)
        expanded: list[int] = []
        for token_id in token_ids:
            expanded.extend([token_id] * (next(counts) if token_id == self.image_token_id else 1))
        return expanded

    def check_grid(self, image: Image.Image, grid: Grid) -> None:
        """Raise SampleRejected for an image that the processor has resized on the way to `grid`."""
        width, height = grid[2] * self.patch_size, grid[1] * self.patch_size
        if image.size != (width, height):
            raise SampleRejected(
                "bad_image",
                f"the processor would resize {image.width}×{image.height} px to {width}×{height}; "
                "send the image at a size it leaves as it is",
            )

    def canary_request(self) -> EngineRequest:
        """One greedy token on a grey ramp of the smallest size the image processor leaves as it is."""
        factor = self.patch_size * self.merge_size
        side = factor * max(2, math.ceil(math.sqrt(self.min_pixels) / factor))
        png = io.BytesIO()
        Image.linear_gradient("L").resize((side, side)).convert("RGB").save(png, format="PNG")
        return EngineRequest(
            uid="canary",
            prompt_token_ids=(self.vision_start_token_id, self.image_token_id, self.vision_end_token_id),
            images=(png.getvalue(),),
            sampling=Sampling(max_new_tokens=1, stop_token_ids=()),
            return_logprobs=True,
        )

    def check_length(self, num_prompt_tokens: int, max_new_tokens: int) -> None:
        """Raise SampleRejected for a prompt that leaves no room for the longest answer."""
        if num_prompt_tokens + max_new_tokens > self.limits.max_model_len:
            raise SampleRejected(
                "prompt_too_long",
                f"{num_prompt_tokens} prompt tokens and {max_new_tokens} new ones exceed "
                f"max_model_len {self.limits.max_model_len}",
            )

    def _check_size(self, width: int, height: int) -> None:
        limit, factor = self.limits.max_image_pixels, self.patch_size * self.merge_size
        if width * height > limit:
            raise SampleRejected("bad_image", f"{width}×{height} px exceed the limit of {limit} px")
        if width % factor or height % factor:
            raise SampleRejected(
                "bad_image",
                f"{width}×{height} px are no multiples of {factor}; send a size that the processor leaves as it is",
            )
        check_aspect_ratio(width, height)


def read_rules(model: str, limits: ServerLimits, min_pixels: int | None = None) -> PromptRules:
    """The rules of the checkpoint in directory `model`, from its JSON files.

    Raises ConfigError without them, and for a checkpoint of no known family. `min_pixels` replaces that of the image
    processor.
    """
    config, processor = _json_of(model, "config.json"), image_processor_of(model)
    facts = facts_of(config.get("model_type"), model)
    try:
        return PromptRules(
            vocab_size=config["text_config"]["vocab_size"],
            image_token_id=config["image_token_id"],
            video_token_id=config["video_token_id"],
            vision_start_token_id=config["vision_start_token_id"],
            vision_end_token_id=config["vision_end_token_id"],
            patch_size=processor["patch_size"],
            merge_size=processor["merge_size"],
            min_pixels=min_pixels if min_pixels is not None else processor["size"]["shortest_edge"],
            limits=limits,
        )
    except KeyError as error:
        raise ConfigError(f"model.model {model} lacks {error}, which a {facts.model_type} checkpoint has") from error


def _json_of(model: str, name: str) -> Any:
    try:
        return orjson.loads((Path(model) / name).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.model {model} has no readable {name}: {error}") from error

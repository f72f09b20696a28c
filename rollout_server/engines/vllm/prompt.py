"""From a request to what vLLM's engine takes: images decoded, placeholders expanded, patches cut."""

import hashlib
from dataclasses import dataclass
from typing import Any

import anyio
from PIL import Image
from vllm.inputs import TokensPrompt

from rollout_server.engines.base import EngineRequest, SampleRejected
from rollout_server.engines.prompt_rules import Grid, PromptRules


@dataclass(frozen=True)
class RenderedPrompt:
    """`inputs` are vLLM's own; `num_tokens` counts the expanded prompt."""

    inputs: Any
    num_tokens: int
    image_grid: tuple[Grid, ...]


@dataclass(frozen=True)
class _OpenedImage:
    """`content_id` stands for the image in vLLM's caches, which trust it."""

    image: Image.Image
    content_id: str


class PromptRenderer:
    """Renders prompts with vLLM's own renderer, on its threads."""

    def __init__(self, renderer: Any, rules: PromptRules) -> None:
        self._renderer = renderer
        self._rules = rules

    async def render(self, request: EngineRequest, num_loads: int) -> RenderedPrompt:
        """Render `request`; raises SampleRejected for an id, an image or a length that does not fit.

        `num_loads` tells the prefix cache which weights its entries belong to. A count of loads, not the policy's
        version, so that a load that failed, or the same version sent again, makes older entries stale too.
        """
        self._rules.check_ids(request)
        self._rules.check_length(len(request.prompt_token_ids), request.sampling.max_new_tokens)
        opened = [await anyio.to_thread.run_sync(self._open, data) for data in request.images]
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_token_ids), cache_salt=str(num_loads))
        if opened:
            prompt["multi_modal_data"] = {"image": [each.image for each in opened]}
            prompt["multi_modal_uuids"] = {"image": [each.content_id for each in opened]}
        try:
            (inputs,) = await self._renderer.render_cmpl_async([prompt])
        except ValueError as error:  # what the image processor raises, wrapped by vLLM
            raise SampleRejected("bad_image", f"vLLM cannot render it: {error.__cause__ or error}") from error
        grids = tuple(_grid_of(item) for item in inputs["mm_kwargs"]["image"]) if opened else ()
        for each, grid in zip(opened, grids, strict=True):
            self._rules.check_grid(each.image, grid)
        num_tokens = len(inputs["prompt_token_ids"])
        self._rules.check_length(num_tokens, request.sampling.max_new_tokens)
        return RenderedPrompt(inputs, num_tokens, grids)

    def _open(self, data: bytes) -> _OpenedImage:
        return _OpenedImage(self._rules.open_image(data), hashlib.sha256(data).hexdigest())


def _grid_of(item: Any) -> Grid:
    frames, rows, columns = item["image_grid_thw"].data.tolist()
    return frames, rows, columns

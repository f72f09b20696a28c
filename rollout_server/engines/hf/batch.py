"""Continuous batching on the transformers model itself: rows join by a prefill, step together, leave when done."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from rollout_server.engines.cache_sizes import CacheSizes
from rollout_server.engines.hf.cache import PrefillView, RowCache, StepView
from rollout_server.engines.hf.families.family import DecodedFamily
from rollout_server.engines.hf.prompt import Prompt
from rollout_server.engines.hf.row import Row
from rollout_server.engines.hf.sampling import BatchSampler, Choice

MAX_PREFILL_TOKENS = 16384
"""Padded tokens of one prefill: bounds its memory."""


@dataclass(frozen=True)
class _Front:
    """What the next step takes, each [rows]: the tokens last chosen, their cache columns, the m-rope deltas."""

    sampler: BatchSampler
    token_ids: Tensor
    columns: Tensor
    deltas: Tensor


class DecodeBatch:
    """The rows that are decoded together. Row i of every tensor is `rows[i]`."""

    def __init__(self, model: Any, family: DecodedFamily, max_rows: int) -> None:
        text = model.config.text_config
        sizes = CacheSizes.of(text)
        self._model = model
        self._family = family
        self._language_model = model.model.language_model
        self._cache_name = cache_name_of(self._language_model)
        self._device: torch.device = model.device
        self._vocab_size: int = text.vocab_size
        self._max_rows = max_rows
        self._cache = RowCache(sizes.num_layers, sizes.num_heads, sizes.head_dim, model.dtype, self._device)
        self.rows: list[Row] = []
        self.generated_tokens = 0
        self._front: _Front | None = None

    @property
    def num_free(self) -> int:
        return self._max_rows - len(self.rows)

    @torch.inference_mode()
    def clear_cache(self) -> None:
        """Forget what gone rows have left, which masked columns still read: weights may have made it NaN."""
        self._cache.states.zero_()

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> None:
        """Prefill `rows`, at most `num_free` of them, and choose their first tokens."""
        for group in prefill_groups(rows):
            self._prefill(group)

    @torch.inference_mode()
    def step(self) -> None:
        """Choose the next token of every row; finished ones are delivered and leave."""
        self._drop([index for index, row in enumerate(self.rows) if row.cancelled])
        if not self.rows:
            return
        front = self._front or self._gathered()
        choice = front.sampler.choose(self._next_logits(front))
        # Only while the rows stay the same; a row that joins or leaves has it gathered anew.
        self._front = replace(front, token_ids=self._column(choice.token_ids), columns=front.columns + 1)
        self._drop(self._extend(self.rows, choice))

    def _prefill(self, group: Sequence[Row]) -> None:
        """Rows that share a prompt are prefilled once; the others of them get a copy of what that left in the cache."""
        group = first_of_each_prompt_first(group)
        places: dict[int, int] = {}
        of_prompt = [places.setdefault(id(row.prompt), len(places)) for row in group]
        prompts = [row.prompt for row in group[: len(places)]]
        started = time.monotonic()
        for row in group:
            row.started_at = started
        first = len(self.rows)
        longest = max(row.num_reserved for row in (*self.rows, *group))
        self._cache.reserve(first + len(group), longest)
        hidden = self._prompt_states(prompts, PrefillView(self._cache, first))
        ends = torch.tensor([prompt.num_tokens - 1 for prompt in prompts], device=self._device)
        logits = self._model.lm_head(hidden[torch.arange(len(prompts), device=self._device), ends])
        for place in range(len(prompts), len(group)):
            self._cache.copy(first + of_prompt[place], first + place, group[place].prompt.num_tokens)
        choice = BatchSampler(group, self._vocab_size, self._device).choose(logits[of_prompt])
        self.rows = [*self.rows, *group]
        self._front = None
        self._drop([first + index for index in self._extend(group, choice)])

    def _prompt_states(self, prompts: Sequence[Prompt], view: PrefillView) -> Tensor:
        """Last hidden states [prompts, longest of them, hidden]; what stands after a prompt's end is padding.

        Padding is on the right, where causal attention alone keeps it out of every real position.
        """
        lengths = [prompt.num_tokens for prompt in prompts]
        token_ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        positions = torch.zeros(self._family.num_axes, len(prompts), max(lengths), dtype=torch.long)
        for index, prompt in enumerate(prompts):
            token_ids[index, : prompt.num_tokens] = prompt.token_ids
            positions[:, index, : prompt.num_tokens] = prompt.positions
        token_ids = token_ids.to(self._device)
        embeds = self._model.get_input_embeddings()(token_ids)
        images: dict[str, Any] = {}
        pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
        if pixels:
            placeholders = token_ids == self._model.config.image_token_id
            grids = torch.tensor([grid for prompt in prompts for grid in prompt.image_grid], device=self._device)
            patches = torch.cat(pixels).to(self._device)
            images = self._family.fill_images(self._model, embeds, placeholders, patches, grids)
        hidden: Tensor = self._language_model(
            inputs_embeds=embeds,
            position_ids=positions.to(self._device),
            use_cache=True,
            **{self._cache_name: view},
            **images,
        ).last_hidden_state
        return hidden

    def _gathered(self) -> _Front:
        return _Front(
            sampler=BatchSampler(self.rows, self._vocab_size, self._device),
            token_ids=self._column([row.token_ids[-1] for row in self.rows]),
            columns=self._column([row.num_cached for row in self.rows]),
            deltas=self._column([row.prompt.delta for row in self.rows]),
        )

    def _column(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self._device)

    def _next_logits(self, front: _Front) -> Tensor:
        width = 1 + max(row.num_cached for row in self.rows)
        visible = torch.arange(width, device=self._device) <= front.columns[:, None]
        hidden = self._language_model(
            inputs_embeds=self._model.get_input_embeddings()(front.token_ids[:, None]),
            attention_mask=visible[:, None, None],
            position_ids=(front.columns + front.deltas)[None, :, None].expand(self._family.num_axes, -1, -1),
            use_cache=True,
            **{self._cache_name: StepView(self._cache, front.columns, width)},
        ).last_hidden_state
        logits: Tensor = self._model.lm_head(hidden[:, 0])
        return logits

    def _extend(self, rows: Sequence[Row], choice: Choice) -> list[int]:
        """Add the chosen tokens; delivers what is finished or failed and returns its indices."""
        finished = []
        self.generated_tokens += len(rows)
        logprobs: Sequence[float | None] = choice.logprobs or [None] * len(rows)
        chosen = zip(rows, choice.token_ids, logprobs, choice.broken, strict=True)
        for index, (row, token_id, logprob, is_broken) in enumerate(chosen):
            if is_broken:
                row.fail("no token can be chosen: the model's logits are not finite, or every token is banned")
                finished.append(index)
                continue
            reason = row.add(token_id, logprob if row.wants_logprobs else None, choice.margins.get(index))
            if reason:
                row.finish(reason)
                finished.append(index)
        return finished

    def _drop(self, indices: Sequence[int]) -> None:
        """Remove rows (ascending indices); the last rows fill the gaps."""
        for index in reversed(indices):
            last = self.rows.pop()
            if index < len(self.rows):
                self._cache.copy(len(self.rows), index, last.num_cached)
                self.rows[index] = last
        if indices:
            self._front = None


def first_of_each_prompt_first(rows: Sequence[Row]) -> list[Row]:
    """The rows with one of each prompt in front, else in order."""
    seen: set[int] = set()
    firsts: list[Row] = []
    others: list[Row] = []
    for row in rows:
        (others if id(row.prompt) in seen else firsts).append(row)
        seen.add(id(row.prompt))
    return [*firsts, *others]


def prefill_groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Cut `rows` in order into groups that stay under MAX_PREFILL_TOKENS when padded to their longest."""
    groups: list[list[Row]] = []
    longest = 0
    for row in rows:
        longest = max(longest, row.prompt.num_tokens)
        if groups and longest * (len(groups[-1]) + 1) <= MAX_PREFILL_TOKENS:
            groups[-1].append(row)
        else:
            groups.append([row])
            longest = row.prompt.num_tokens
    return groups


def cache_name_of(language_model: Any) -> str:
    """What a forward calls its cache: transformers from 5.24 on has another name, and warns of the old one."""
    return "cache" if "cache" in signature(language_model.forward).parameters else "past_key_values"

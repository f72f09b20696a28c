"""From logits to the next token of each row: penalty, bans, bias of the stop, then the greedy or sampled choice."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shared.wire import MAX_MARGIN, Sampling


class SampledRow(Protocol):
    """What the choice of a row's next token depends on, besides its logits."""

    sampling: Sampling
    wants_logprobs: bool
    rng: random.Random

    def seen_token_ids(self) -> Sequence[int]:
        """Prompt and answer so far: what a repetition penalty applies to."""

    def ending_id(self) -> int | None:
        """The id that would end the answer, where the next token decides on that by a biased logit."""


@dataclass(frozen=True)
class Choice:
    """The next token ids [rows], and their log-probabilities when a row wants them.

    A row that is `broken` has none: its best logit is no number, or minus infinity as when all tokens are banned.
    `margins` of rows that decided on a stop: how far its logit was above the best other, before the bias.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    broken: list[bool]
    margins: Mapping[int, float]


class BatchSampler:
    """Chooses for a fixed set of rows; made anew whenever the set changes.

    A row's choice depends on its own logits and its own random numbers alone, one drawn a token, so it is the same in
    any company.
    """

    def __init__(self, rows: Sequence[SampledRow], vocab_size: int, device: torch.device) -> None:
        self._rows = rows
        self._sampled = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
        self._wants_logprobs = any(row.wants_logprobs for row in rows)
        banned = [(index, token_id) for index, row in enumerate(rows) for token_id in row.sampling.banned_token_ids]
        self._banned = tuple(torch.tensor(banned, dtype=torch.long, device=device).T) if banned else None
        self._penalty = _penalties(rows, device)
        self._seen = None if self._penalty is None else _seen(rows, vocab_size, device)
        self._biased = [index for index, row in enumerate(rows) if row.sampling.stop_decision is not None]
        if self._sampled:
            self._filters = _Filters.of([rows[index].sampling for index in self._sampled], vocab_size, device)

    def choose(self, logits: Tensor) -> Choice:
        """Choose from `logits` [rows, vocabulary], which may be written to."""
        logits = logits.float()
        normaliser = logits.logsumexp(-1) if self._wants_logprobs else None
        adjusted = logits if self._penalty is None else self._penalised(logits)
        if self._banned is not None:
            adjusted[self._banned] = -torch.inf
        adjusted, margins = self._with_bias(adjusted)
        best, chosen = adjusted.max(-1)
        if self._sampled:
            numbers = [self._rows[index].rng.random() for index in self._sampled]
            chosen[self._sampled] = self._filters.draw(adjusted[self._sampled], numbers)
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None], True)
        logprobs = None
        if normaliser is not None:
            logprobs = (logits.gather(1, chosen[:, None])[:, 0] - normaliser).tolist()
        return Choice(chosen.tolist(), logprobs, (~best.isfinite()).tolist(), margins)

    def _with_bias(self, logits: Tensor) -> tuple[Tensor, Mapping[int, float]]:
        """The logits, copied where an ending's is biased, and the margins that were there before."""
        decided = [(index, id) for index in self._biased if (id := self._rows[index].ending_id()) is not None]
        if not decided:
            return logits, {}
        rows, endings = torch.tensor(decided, device=logits.device).T
        decisions = (self._rows[index].sampling.stop_decision for index, _ in decided)
        biases = torch.tensor([decision.bias for decision in decisions if decision], device=logits.device)
        biased = logits.clone()
        biased[rows, endings] = -torch.inf
        margins = logits[rows, endings] - biased[rows].amax(-1)
        biased[rows, endings] = logits[rows, endings] - biases
        bounded = margins.clamp(-MAX_MARGIN, MAX_MARGIN)  # still no number in a row that is told as broken
        return biased, dict(zip((index for index, _ in decided), bounded.tolist(), strict=True))

    def _penalised(self, logits: Tensor) -> Tensor:
        """CTRL's repetition penalty (Keskar et al. 2019), signed as in transformers and vLLM."""
        assert self._penalty is not None
        assert self._seen is not None
        penalised = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
        return torch.where(self._seen, penalised, logits)


def _penalties(rows: Sequence[SampledRow], device: torch.device) -> Tensor | None:
    penalties = [row.sampling.repetition_penalty for row in rows]
    if all(penalty == 1.0 for penalty in penalties):
        return None
    return torch.tensor(penalties, device=device)[:, None]


def _seen(rows: Sequence[SampledRow], vocab_size: int, device: torch.device) -> Tensor:
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for index, row in enumerate(rows):
        seen[index, torch.tensor(row.seen_token_ids(), dtype=torch.long, device=device)] = True
    return seen


@dataclass(frozen=True)
class _Filters:
    """Temperature, top-k and top-p of the sampled rows, each [rows, 1]."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], vocab_size: int, device: torch.device) -> "_Filters":
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)[:, None]

        return cls(
            temperature=column([sampling.temperature for sampling in samplings]),
            top_k=column([float(sampling.top_k or vocab_size) for sampling in samplings]),
            top_p=column([sampling.top_p for sampling in samplings]),
        )

    def draw(self, logits: Tensor, numbers: Sequence[float]) -> Tensor:
        """Invert the filtered distribution's CDF at `numbers`, each in [0, 1). Nucleus as in Holtzman et al. 2020."""
        ranked, token_ids = (logits / self.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(ranked.shape[1], device=ranked.device)
        ranked = ranked.masked_fill(ranks >= self.top_k, 0.0)
        ranked = ranked / ranked.sum(-1, keepdim=True)
        mass_before = ranked.cumsum(-1) - ranked
        ranked = ranked.masked_fill(mass_before >= self.top_p, 0.0)
        cumulative = ranked.cumsum(-1)
        threshold = torch.tensor(numbers, device=ranked.device)[:, None] * cumulative[:, -1:]
        # Rounding may put the threshold at the very end of the mass; the last token that holds any is meant.
        last = ((ranked > 0).sum(-1) - 1).clamp_min(0)  # there is none in a broken row
        picked = (cumulative <= threshold).sum(-1).minimum(last)
        return token_ids.gather(1, picked[:, None])[:, 0]

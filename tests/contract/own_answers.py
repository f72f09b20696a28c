"""What a learner's own model answers, to compare a server with."""

from collections.abc import Sequence

import torch

from learner.model.loaded import LoadedModel
from learner.types import RolloutRequest
from shared.wire import Sampling

LOGIT_TIE = 1e-5

Answers = list[tuple[int, ...]]


class Learner:
    """A model that trains by leaps, and its own answers."""

    def __init__(self, loaded: LoadedModel, requests: Sequence[RolloutRequest], sampling: Sampling) -> None:
        self.loaded = loaded
        self._requests = requests
        self._sampling = sampling
        self._begin = {name: each.detach().clone() for name, each in self._trained().items()}
        self._answers: dict[int, Answers] = {}
        self._step = 0

    def train_to(self, step: int) -> None:
        """Weights that depend on `step` alone."""
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for name, parameter in self._trained().items():
                noise = torch.randn(parameter.shape, generator=generator)
                scale = self._begin[name].std(correction=0).clamp_min(0.05)
                parameter.copy_(self._begin[name] + 0.1 * scale * noise)
        self._step = step

    def answers(self) -> Answers:
        """Greedy `generate` of transformers on all requests at once."""
        if self._step not in self._answers:
            ids = torch.tensor([request.encoded.prompt_token_ids for request in self._requests])
            self._answers[self._step] = [tuple(row) for row in self._generate(ids)]
        return self._answers[self._step]

    @torch.no_grad()
    def tie(self, index: int, prefix: Sequence[int], one: int, other: int) -> float:
        """How far apart the logits of two tokens are after a prompt and the beginning of an answer."""
        ids = torch.tensor([[*self._requests[index].encoded.prompt_token_ids, *prefix]])
        logits = self.loaded.model.eval()(**self._inputs(ids, [self._requests[index]])).logits[0, -1]
        return abs(float(logits[one] - logits[other]))

    @torch.no_grad()
    def _generate(self, ids: torch.Tensor) -> Answers:
        sampling = self._sampling
        output = self.loaded.model.eval().generate(
            **self._inputs(ids, self._requests),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=list(sampling.stop_token_ids),
            pad_token_id=sampling.stop_token_ids[0],
            suppress_tokens=list(sampling.banned_token_ids),
        )
        return [self._until_stop(row) for row in output[:, ids.shape[1] :].tolist()]

    def _inputs(self, ids: torch.Tensor, requests: Sequence[RolloutRequest]) -> dict[str, torch.Tensor]:
        images = [request.encoded.image for request in requests]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.cat([torch.from_numpy(image.pixel_values) for image in images]),
            "image_grid_thw": torch.tensor([image.grid for image in images]),
            "mm_token_type_ids": (ids == self.loaded.image_token_id).int(),
        }

    def _until_stop(self, row: list[int]) -> tuple[int, ...]:
        ends = [row.index(stop) + 1 for stop in self._sampling.stop_token_ids if stop in row]
        return tuple(row[: min(ends, default=len(row))])

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: each for name, each in self.loaded.model.named_parameters() if each.requires_grad}


def assert_same(answers: Answers, learner: Learner) -> None:
    """Equal answers, but for a tie of logits, after which they may differ."""
    for index, (got, wanted) in enumerate(zip(answers, learner.answers(), strict=True)):
        if got != wanted:
            at = next(i for i, (one, other) in enumerate(zip(got, wanted, strict=False)) if one != other)
            assert learner.tie(index, wanted[:at], got[at], wanted[at]) <= LOGIT_TIE, f"answer {index}, token {at}"

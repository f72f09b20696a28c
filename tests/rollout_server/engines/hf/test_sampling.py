import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rollout_server.engines.hf.sampling import BatchSampler
from shared.wire import Sampling

CPU = torch.device("cpu")
VOCAB = 12


@dataclass
class Row:
    """A row with a history."""

    sampling: Sampling
    seed: int = 0
    seen: tuple[int, ...] = ()
    wants_logprobs: bool = False
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def seen_token_ids(self) -> tuple[int, ...]:
        return self.seen


def sampling(**options: object) -> Sampling:
    return Sampling(**{"max_new_tokens": 1, "stop_token_ids": (), **options})


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def test_greedy_takes_the_highest_and_never_a_banned_one() -> None:
    scores = torch.tensor([[0.0, 3.0, 2.0], [0.0, 3.0, 2.0]])
    rows = [Row(sampling()), Row(sampling(banned_token_ids=(1,)))]
    assert BatchSampler(rows, 3, CPU).choose(scores).token_ids == [1, 2]


def test_a_penalty_is_transformers_own_and_grows_with_the_answer() -> None:
    row = Row(sampling(repetition_penalty=1.7), seen=(2, 5))
    sampler, history = BatchSampler([row], VOCAB, CPU), [2, 5]
    reference = RepetitionPenaltyLogitsProcessor(1.7)
    for step in range(8):
        scores = logits(1, step)
        expected = int(reference(torch.tensor([history]), scores.clone()).argmax())
        assert sampler.choose(scores.clone()).token_ids == [expected]
        history.append(expected)


def test_logprobs_are_the_models_own_before_penalty_and_bans() -> None:
    scores = logits(1)
    best = int(scores.argmax())
    row = Row(sampling(repetition_penalty=1.5, banned_token_ids=(best,)), seen=(0, 1), wants_logprobs=True)
    choice = BatchSampler([row], VOCAB, CPU).choose(scores.clone())
    assert choice.token_ids != [best]
    assert choice.logprobs == pytest.approx([scores.log_softmax(-1)[0, choice.token_ids[0]].item()], abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.6}])
def test_samples_follow_transformers_distribution(options: dict[str, float]) -> None:
    scores = logits(1) / 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(0.8)])
    if "top_k" in options:
        warpers.append(TopKLogitsWarper(int(options["top_k"])))
    if "top_p" in options:
        warpers.append(TopPLogitsWarper(options["top_p"]))
    expected = warpers(None, scores.clone())[0].softmax(-1)
    rows = [Row(sampling(temperature=0.8, **options), seed=seed) for seed in range(4000)]
    drawn = Counter(BatchSampler(rows, VOCAB, CPU).choose(scores.repeat(4000, 1)).token_ids)
    assert all(expected[token_id] > 0 for token_id in drawn)
    frequency = torch.tensor([drawn[token_id] / 4000 for token_id in range(VOCAB)])
    assert (frequency - expected).abs().max() < 0.04


def test_a_seed_gives_the_same_sample_alone_and_in_company() -> None:
    scores = logits(17)
    options = sampling(temperature=1.0, top_p=0.9)
    together = BatchSampler([Row(options, seed=seed) for seed in range(17)], VOCAB, CPU).choose(scores.clone())
    alone = [
        BatchSampler([Row(options, seed=seed)], VOCAB, CPU).choose(scores[seed : seed + 1].clone()).token_ids[0]
        for seed in range(17)
    ]
    assert together.token_ids == alone
    assert len(set(alone)) > 3


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    scores = logits(1).repeat(50, 1)
    rows = [Row(sampling(temperature=2.0 * (index % 2)), seed=index) for index in range(50)]
    chosen = BatchSampler(rows, VOCAB, CPU).choose(scores.clone()).token_ids
    assert set(chosen[::2]) == {int(scores[0].argmax())}
    assert len(set(chosen[1::2])) > 3

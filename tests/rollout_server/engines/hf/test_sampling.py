import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rollout_server.engines.hf.sampling import BatchSampler
from shared.wire import MAX_COUNT, MAX_TEMPERATURE, MIN_TEMPERATURE, Sampling, StopDecision

CPU = torch.device("cpu")
VOCAB = 12


@dataclass
class Row:
    """A row with a history."""

    sampling: Sampling
    seed: int = 0
    seen: tuple[int, ...] = ()
    wants_logprobs: bool = False
    ending: int | None = None
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def seen_token_ids(self) -> tuple[int, ...]:
        return self.seen

    def ending_id(self) -> int | None:
        return self.ending


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


def test_an_ending_is_biased_where_it_is_decided_on_and_its_margin_and_log_probability_are_the_models_own() -> None:
    decision = StopDecision(bias=2.0, at_start=(1,), behind_coordinate=(1,), coordinate_ids=(9,))
    scores = torch.tensor([[0.0, 3.0, 2.0]]).repeat(4, 1)
    rows = [
        Row(sampling(stop_decision=decision), wants_logprobs=True, ending=1),
        Row(sampling(stop_decision=decision), wants_logprobs=True),
        Row(sampling(stop_decision=decision, temperature=0.01), wants_logprobs=True, ending=0),
        Row(sampling(), wants_logprobs=True),
    ]
    choice = BatchSampler(rows, 3, CPU).choose(scores.clone())
    assert choice.token_ids == [2, 1, 1, 1]
    assert choice.margins == {0: 1.0, 2: -3.0}
    own = scores[0].log_softmax(-1)
    assert choice.logprobs == pytest.approx([own[2].item(), *[own[1].item()] * 3], abs=1e-6)


def test_a_margin_over_nothing_else_is_a_number() -> None:
    decision = StopDecision(bias=7.0, at_start=(1,), behind_coordinate=(1,), coordinate_ids=(9,))
    row = Row(sampling(stop_decision=decision, banned_token_ids=(0, 2)), ending=1)
    assert BatchSampler([row], 3, CPU).choose(torch.zeros(1, 3)).margins == {0: 100.0}
    assert BatchSampler([row], 3, CPU).choose(torch.full((1, 3), torch.nan)).broken == [True]


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


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.reported("temperature 1, top_p 1e-300")
@given(
    temperature=st.sampled_from([0.0, MIN_TEMPERATURE, 1.0, MAX_TEMPERATURE]) | FLOATS,
    top_p=st.sampled_from([1e-6, 0.5, 1.0, 1e-300]) | FLOATS,
    top_k=st.sampled_from([0, 1, 5, MAX_COUNT]) | st.integers(),
    repetition_penalty=st.sampled_from([0.01, 1.0, 100.0]) | FLOATS,
    scale=st.sampled_from([1e-30, 1.0, 1e4, 1e30]),
    seed=st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_whatever_the_wire_takes_chooses_a_token(temperature, top_p, top_k, repetition_penalty, scale, seed) -> None:
    try:
        asked = sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            banned_token_ids=(3,),
        )
    except ValidationError:
        return
    rows = [Row(asked, seed, seen=(1, 2), wants_logprobs=True), Row(sampling())]
    choice = BatchSampler(rows, VOCAB, CPU).choose(logits(2, seed) * scale)
    assert choice.broken == [False, False]
    assert choice.token_ids[0] in range(VOCAB)
    assert choice.token_ids[0] != 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_finite_logit_fails_alone(value: float, temperature: float) -> None:
    scores = logits(3)
    scores[1] = value
    rows = [Row(sampling(temperature=temperature), seed) for seed in range(3)]
    alone = BatchSampler([rows[0]], VOCAB, CPU).choose(logits(3)[:1])
    rows[0].rng.seed(0)
    choice = BatchSampler(rows, VOCAB, CPU).choose(scores)
    assert choice.broken == [False, True, False]
    assert choice.token_ids[0] == alone.token_ids[0]


def test_a_row_whose_tokens_are_all_banned_fails_alone() -> None:
    rows = [Row(sampling(banned_token_ids=tuple(range(VOCAB)))), Row(sampling())]
    assert BatchSampler(rows, VOCAB, CPU).choose(logits(2)).broken == [True, False]

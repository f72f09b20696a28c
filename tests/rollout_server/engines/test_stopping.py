from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_server.engines.stopping import OBJECT_KEY, StopRule, ends_in_repeats
from shared.wire import RepeatTerminate, Sampling


def ending(token_ids: Sequence[int], limits: RepeatTerminate | None = None, pieces: Sequence[str] = (), most: int = 99):
    """(length, reason) at which the answer ends, or None when it goes on."""
    sampling = Sampling(max_new_tokens=most, stop_token_ids=(1000,), repeat_terminate=limits)
    rule = StopRule(sampling, lambda token_id: pieces[token_id])
    for length in range(1, len(token_ids) + 1):
        if reason := rule.after(token_ids[:length]):
            return length, reason
    return None


def test_an_answer_ends_with_its_stop_id_or_its_last_allowed_token() -> None:
    assert ending([1, 2, 1000, 3]) == (3, "stop")
    assert ending([1, 2, 3, 4], most=3) == (3, "length")
    assert ending([1, 2, 1000], most=3) == (3, "stop")
    assert ending([1, 2]) is None


def test_a_token_said_too_often_in_a_row_ends_the_answer() -> None:
    limits = RepeatTerminate(max_consecutive_token_repeats=3)
    assert ending([5, 5, 6, 5, 5, 5, 5], limits) == (6, "repetition")


def test_a_phrase_said_too_often_in_a_row_ends_the_answer() -> None:
    limits = RepeatTerminate(ngram_size=2, ngram_repeats=3)
    assert ending([9, 1, 2, 1, 2, 3, 1, 2, 1, 2, 1, 2], limits) == (12, "repetition")


def test_short_answers_may_repeat_themselves() -> None:
    limits = RepeatTerminate(max_consecutive_token_repeats=2, min_new_tokens=5)
    assert ending([5, 5, 5, 5, 5, 5], limits) == (5, "repetition")


def test_limits_of_zero_are_off() -> None:
    assert ending([5] * 50, RepeatTerminate()) is None


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(1, 4), st.integers(1, 4))
def test_repeats_are_found_exactly(tokens: list[int], size: int, repeats: int) -> None:
    span = size * repeats
    phrase = tokens[len(tokens) - size :]
    expected = len(tokens) >= span and tokens[len(tokens) - span :] == phrase * repeats
    assert ends_in_repeats(tokens, size, repeats) == expected


TEXT = '{"object_1": {"desc": "a \\"object_9 b"}, "object_2": {}, "object_3": {}}'


@given(st.lists(st.integers(0, len(TEXT)), max_size=10))
def test_the_key_beyond_the_limit_ends_the_answer_however_the_text_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[start:end] for start, end in pairwise(edges)]
    length, reason = ending(range(len(pieces)), RepeatTerminate(max_object_keys=2), pieces)
    assert reason == "object_limit"
    third_key = TEXT.index(OBJECT_KEY + "3") + len(OBJECT_KEY)
    assert len("".join(pieces[: length - 1])) < third_key <= len("".join(pieces[:length]))


@pytest.mark.parametrize("limit", [3, 0])
def test_as_many_keys_as_allowed_go_on(limit: int) -> None:
    assert ending([0], RepeatTerminate(max_object_keys=limit), [TEXT]) is None

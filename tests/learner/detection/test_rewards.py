"""Rewards: what an answer is worth, and that the advantages of its tokens are an unbiased gradient of that."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.detection.parsing import ParsedRollout, parse_rollout
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject
from learner.detection.rewards import GradedAnswer, RewardRules, advantages_of, grade_answer
from learner.detection.serialize import answer_text
from learner.detection.vocabulary import CoordinateVocabulary

CAT = GroundTruthObject("cat", "bbox_2d", (100, 100, 300, 300))
DOG = GroundTruthObject("dog", "bbox_2d", (500, 400, 800, 700))
TRUTH = [CAT, DOG]
HALF_CAT = ("cat", (100, 100, 300, 240))  # IoU .7
BETTER_CAT = ("cat", (100, 100, 300, 270))  # IoU .85
WRONG_NAME = ("owl", (500, 400, 800, 700))
NOWHERE = ("owl", (0, 0, 40, 40))
SEEN = (HALF_CAT, BETTER_CAT, WRONG_NAME, NOWHERE)
PRICE = 0.15
PER_OBJECT = 3
"""Tokens of an object in the toy answers; one more ends them."""


def answer(*objects: tuple[str, tuple[int, ...]], rules: RewardRules = RewardRules(), **fields: object) -> GradedAnswer:
    predictions = tuple(
        Prediction(number, desc, "bbox_2d", bins, tuple(range((number - 1) * PER_OBJECT, number * PER_OBJECT)))
        for number, (desc, bins) in enumerate(objects, 1)
    )
    parsed = ParsedRollout(predictions=predictions, empty=not predictions, **fields)  # type: ignore[arg-type]
    return grade_answer(parsed, len(objects) * PER_OBJECT + 1, False, TRUTH, rules)


def test_an_answer_is_worth_the_best_assignment_of_its_objects() -> None:
    graded = answer(HALF_CAT, WRONG_NAME, NOWHERE)
    assert graded.gains == pytest.approx((0.7, 0.5, 0.0))
    assert graded.reward(PRICE) == pytest.approx(1.2 - 3 * PRICE)
    assert graded.rewards(PRICE) == pytest.approx((0.7 - PRICE, 0.5 - PRICE, -PRICE, 0.0))
    assert answer().reward(PRICE) == 0.0


def test_a_box_can_be_worth_the_thresholds_of_coco_that_it_reaches() -> None:
    rules = RewardRules(box_worth="iou50_95", desc_share=1.0)
    assert answer(HALF_CAT, BETTER_CAT, WRONG_NAME, rules=rules).gains == pytest.approx((0.5, 0.3, 0.0))
    exact = [("cat", CAT.bins), ("dog", DOG.bins)]
    assert answer(*exact, rules=rules).gains == pytest.approx((1.0, 1.0))


def test_a_duplicate_earns_what_it_adds_and_costs_its_price() -> None:
    graded = answer(HALF_CAT, BETTER_CAT, BETTER_CAT)
    assert graded.gains == pytest.approx((0.7, 0.15, 0.0))
    assert graded.found == (-1, 0, -1)


def test_a_bad_answer_costs_and_a_dropped_entry_is_an_object_that_earns_nothing() -> None:
    assert answer(HALF_CAT, truncated=True).reward(PRICE) == pytest.approx(0.7 - PRICE - 0.3)
    dropped = answer(HALF_CAT, dropped=Counter(arity=2))
    assert dropped.dropped == (0, 2)
    assert dropped.reward(PRICE) == pytest.approx(0.7 - 3 * PRICE)
    malformed = ParsedRollout(malformed=True)
    assert grade_answer(malformed, 5, False, TRUTH, RewardRules()).reward(PRICE) == -0.3
    assert grade_answer(ParsedRollout(empty=True), 2, True, TRUTH, RewardRules()).cost == 0.3


def test_dropped_entries_are_charged_where_they_stand(vocabulary: CoordinateVocabulary) -> None:
    text = answer_text([CAT, DOG, CAT]).replace('"object_2": {"desc"', '"object_2": {"name"') + "<|im_end|>"
    ids = vocabulary.encode(text)
    parsed = parse_rollout(ids, vocabulary)
    spaced = parse_rollout(vocabulary.encode(text.replace(": ", ":")), vocabulary)
    for each in (parsed, spaced):
        assert grade_answer(each, len(ids), False, TRUTH, RewardRules()).dropped == (0, 1, 0)


def test_each_token_of_a_span_has_one_advantage() -> None:
    one, other = answer(HALF_CAT, WRONG_NAME), answer(HALF_CAT)
    first, second = advantages_of([one, other], PRICE, RewardRules())
    assert [len(first), len(second)] == [7, 4]
    assert first == pytest.approx([0.5 - PRICE] * 6 + [0.0])
    assert second == pytest.approx([-(0.5 - PRICE)] * 4)  # the stop left earnings: that is the recall in it


def test_equal_answers_teach_nothing() -> None:
    for rules in (RewardRules(), RewardRules(credit="answer"), RewardRules(in_order=False)):
        for price in (PRICE, 0.1, 1 / 3):
            for advantages in advantages_of([answer(HALF_CAT, WRONG_NAME)] * 4, price, rules):
                assert advantages == [0.0] * 7  # what rounding leaves would not be silent


# --- an exact check: every answer that a small policy can give --------------------------------------------------------

STOP = len(SEEN)
MOST = 3


def every_answer() -> Iterator[tuple[int, ...]]:
    for count in range(MOST + 1):
        yield from product(range(STOP), repeat=count)


def policy(seed: int) -> dict[tuple[int, ...], np.ndarray]:
    """Of each beginning, what comes next: any box seen or the stop, which is certain after MOST."""
    chance = np.random.default_rng(seed)
    probabilities = {}
    for beginning in every_answer():
        logits = chance.normal(size=STOP + 1) * 1.5
        if len(beginning) == MOST:
            logits[:STOP] = -math.inf
        weights = np.exp(logits - logits.max())
        probabilities[beginning] = weights / weights.sum()
    return probabilities


def gradient(
    probabilities: dict[tuple[int, ...], np.ndarray], symbols: tuple[int, ...], advantages: list[float]
) -> dict[tuple[int, ...], np.ndarray]:
    """Σ A_t ∇ log π(y_t) by the logits of each beginning; a symbol has the advantage of its span."""
    slopes = {}
    for place, symbol in enumerate((*symbols, STOP)):
        beginning = symbols[:place]
        slope = -probabilities[beginning].copy()
        slope[symbol] += 1
        slopes[beginning] = advantages[min(place * PER_OBJECT, len(advantages) - 1)] * slope
    return slopes


@pytest.mark.slow
@pytest.mark.parametrize("credit", ["object", "answer"])
@pytest.mark.parametrize("in_order", [True, False])
def test_the_expected_gradient_is_that_of_the_expected_reward(
    credit: Literal["object", "answer"], in_order: bool
) -> None:
    rules = RewardRules(credit=credit, in_order=in_order)
    probabilities = policy(7)
    graded = {symbols: answer(*(SEEN[each] for each in symbols), rules=rules) for symbols in every_answer()}
    chance = {
        symbols: math.prod(probabilities[symbols[:place]][each] for place, each in enumerate((*symbols, STOP)))
        for symbols in graded
    }
    assert sum(chance.values()) == pytest.approx(1.0)
    expected = {beginning: np.zeros(STOP + 1) for beginning in probabilities}
    found = {beginning: np.zeros(STOP + 1) for beginning in probabilities}
    for symbols, one in graded.items():
        for beginning, slope in gradient(probabilities, symbols, [one.reward(PRICE)] * one.num_tokens).items():
            expected[beginning] += chance[symbols] * slope
        for others, other in graded.items():
            advantages, _ = advantages_of([one, other], PRICE, rules)
            for beginning, slope in gradient(probabilities, symbols, advantages).items():
                found[beginning] += chance[symbols] * chance[others] * slope
    largest = max(abs(slope).max() for slope in expected.values())
    assert largest > 0.01
    for beginning, slope in expected.items():
        np.testing.assert_allclose(found[beginning], slope, atol=1e-12 + 1e-10 * largest)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(SEEN), max_size=4), min_size=2, max_size=4), st.floats(0, 1))
def test_gains_add_up_to_the_value_and_advantages_of_siblings_to_nothing(
    said: list[list[tuple[str, tuple[int, ...]]]], price: float
) -> None:
    answers = [answer(*objects) for objects in said]
    for graded, objects in zip(answers, said, strict=True):
        assert graded.value == pytest.approx(best_value(objects))
        assert min(graded.gains, default=0.0) >= 0
        assert sum(graded.rewards(price)) == pytest.approx(graded.reward(price))
    whole = advantages_of(answers, price, replace(RewardRules(), credit="answer"))
    assert sum(advantages[0] for advantages in whole) == pytest.approx(0.0, abs=1e-9)
    for advantages, graded in zip(advantages_of(answers, price, RewardRules()), answers, strict=True):
        assert len(advantages) == graded.num_tokens
        assert len(set(advantages)) <= len(graded.gains) + 1


def best_value(objects: list[tuple[str, tuple[int, ...]]]) -> float:
    """The value by trying every choice of predictions, of which there are few."""
    worth = {"cat": {HALF_CAT: 0.7, BETTER_CAT: 0.85}, "dog": {WRONG_NAME: 0.5}}
    return sum(max((values[each] for each in objects if each in values), default=0.0) for values in worth.values())

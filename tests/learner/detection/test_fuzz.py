"""A million random answers, and long ones in linear time."""

import gc
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest

from learner.detection.parsing import ParsedRollout, RolloutParser, parse_rollout
from learner.detection.vocabulary import CoordinateVocabulary

NUM_ROUNDS = 100
GLUE = ('{"object_', '1": {"desc": "', "cat", '", "bbox_2d": ["', '", "', '"]}', ", ", "}", '"', "\\", "é", "[", " ")
OPENED = '{"object_1": {"desc": "cat", "bbox_2d": ["'
WHOLE = OPENED + '<|coord_1|>", "<|coord_2|>", "<|coord_3|>", "<|coord_4|>"]}'


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No search for garbage, which looks through all that other tests have loaded; parsing leaves none in cycles."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.very_slow
@pytest.mark.slow
@pytest.mark.usefixtures("uncollected")
def test_a_million_random_answers_never_raise(fused_vocabulary: CoordinateVocabulary) -> None:
    """9,000 of any ids and 1,000 of likely ones in each round, two thirds of these behind a good beginning."""
    vocabulary = fused_vocabulary
    rng = np.random.default_rng(0)
    num_ids = vocabulary.tokenizer.get_vocab_size()
    glue = np.array([token_id for text in GLUE for token_id in vocabulary.encode(text)])
    coordinates = np.array(vocabulary.coordinate_ids)
    beginnings = [[], vocabulary.encode(OPENED), vocabulary.encode(WHOLE)]
    num_parsed = num_kept = 0
    for _ in range(NUM_ROUNDS):
        any_ids = rng.integers(-1, num_ids + 2, (9000, 4)).tolist()
        is_glue = rng.random((1000, 8)) < 0.7
        likely = np.where(is_glue, rng.choice(glue, (1000, 8)), rng.choice(coordinates, (1000, 8))).tolist()
        answers = any_ids + [beginnings[place % 3] + ids for place, ids in enumerate(likely)]
        for ids in answers:
            parsed = parse_rollout(ids, vocabulary)
            if parsed.predictions:
                num_kept += 1
                assert parsed.prefix_token_ids == tuple(ids[: len(parsed.prefix_token_ids)])
        num_parsed += len(answers)
    assert num_parsed == 1_000_000
    assert 25_000 < num_kept < 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closing", "num_answers", "num_ids"),
    [(True, 350, 100), (False, 15, 2500)],
    ids=["entries", "an entry that never ends"],
)
def test_long_random_answers_take_linear_time(
    closing: bool, num_answers: int, num_ids: int, fused_vocabulary: CoordinateVocabulary
) -> None:
    """Three times so many answers of so many likely ids, and of four times as many, fed in pieces of any size."""
    vocabulary = fused_vocabulary
    rng = random.Random(0)
    begun = vocabulary.encode(WHOLE + ', "object_2": {"desc": "')
    units = [vocabulary.encode(text) for text in GLUE if text != "}" and (closing or text.isalnum())]
    units += [[token_id] for token_id in vocabulary.coordinate_ids[:3]]
    entry = vocabulary.encode(', "object_2": ' + WHOLE.removeprefix('{"object_1": '))

    def answer(length: int) -> list[int]:
        ids = vocabulary.encode(WHOLE) if closing else list(begun)
        while len(ids) < length:
            ids += entry if closing and rng.random() < 0.99 else rng.choice(units)
        return ids[:length]

    ratios = []
    for _ in range(3):
        short, long = ([answer(length) for _ in range(num_answers)] for length in (num_ids, 4 * num_ids))
        seconds = [time.process_time()]
        for answers in (short, long):
            parsed = [fed(ids, vocabulary, rng) for ids in answers]
            seconds.append(time.process_time())
            assert all(each.predictions for each in parsed)
        ratios.append((seconds[2] - seconds[1]) / (seconds[1] - seconds[0]))
    assert min(ratios) < 8


def fed(ids: list[int], vocabulary: CoordinateVocabulary, rng: random.Random) -> ParsedRollout:
    parser = RolloutParser(vocabulary)
    start = 0
    while start < len(ids):
        size = rng.choice((1, 2, 8))
        parser.feed(ids[start : start + size])
        start += size
    return parser.finish()

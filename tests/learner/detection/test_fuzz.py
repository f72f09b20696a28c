"""A million random answers."""

import numpy as np
import pytest

from learner.detection.parsing import parse_rollout
from learner.detection.vocabulary import CoordinateVocabulary

NUM_ROUNDS = 100
GLUE = ('{"object_', '1": {"desc": "', "cat", '", "bbox_2d": ["', '", "', '"]}', ", ", "}", '"', "\\", "é", "[", " ")
OPENED = '{"object_1": {"desc": "cat", "bbox_2d": ["'
WHOLE = OPENED + '<|coord_1|>", "<|coord_2|>", "<|coord_3|>", "<|coord_4|>"]}'


@pytest.mark.slow
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

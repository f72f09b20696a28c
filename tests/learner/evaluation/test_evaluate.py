"""How sure the model was of an object."""

from dataclasses import replace
from math import log

import numpy as np
import pytest

from learner.detection.prediction import Prediction
from learner.detection.record import Record
from learner.evaluation.answers import score_of
from learner.types import EncodedImage, EncodedRecord, Rollout, RolloutRequest
from shared.errors import ProtocolError


def rollout_of(*logprobs: float) -> Rollout:
    image = EncodedImage(np.zeros((4, 8), np.float32), (1, 2, 2), b"")
    encoded = EncodedRecord(Record("val:1", ("i.png",), 64, 64, ()), (1, 2), (1, 2), image)
    return Rollout(
        request=RolloutRequest(encoded, seed=0),
        token_ids=tuple(range(len(logprobs))),
        finish_reason="stop",
        policy_version=None,
        token_logprobs=logprobs,
        queue_s=0.0,
        decode_s=0.0,
        arrived_at=0.0,
    )


def test_an_object_scores_the_mean_probability_of_its_own_coordinates() -> None:
    """The tokens around them, sure or not, play no part."""
    probabilities = (1.0, 0.9, 0.8, 0.001, 0.1, 0.4, 1.0, 0.7)
    rollout = rollout_of(*map(log, probabilities))
    first = Prediction(1, "cat", "bbox_2d", (0, 0, 9, 9), (1, 2, 4, 5))
    second = Prediction(2, "cat", "poly", (0, 0, 9, 0, 9, 9), (1, 2, 4, 5, 6, 7))
    assert score_of(first, rollout) == pytest.approx((0.9 + 0.8 + 0.1 + 0.4) / 4)
    assert score_of(second, rollout) == pytest.approx((0.9 + 0.8 + 0.1 + 0.4 + 1.0 + 0.7) / 6)


def test_an_answer_without_log_probabilities_has_no_score() -> None:
    first = Prediction(1, "cat", "bbox_2d", (0, 0, 9, 9), (0, 1, 2, 3))
    with pytest.raises(ProtocolError, match=r"val:1.*log-probabilities"):
        score_of(first, replace(rollout_of(), token_logprobs=None))

"""Steps and answers made by the real parser, matcher and maker of targets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from learner.channels.target_maker import TargetMaker
from learner.detection.matching import MatchingConfig
from learner.detection.record import GroundTruthObject, Record
from learner.detection.targets import TargetWeights
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.plan.schedule import Channel
from learner.plan.step_plan import StepPlan, StepTotals
from learner.types import EncodedImage, EncodedRecord, Rollout, RolloutRequest, TaughtRollout
from shared.wire import PolicyVersion

LearnedOf = Callable[..., TaughtRollout]


@pytest.fixture
def learned_of(tiny_folder: Path) -> LearnedOf:
    """Make what is learned of an answer, given as text, to an image of these objects."""
    vocabulary = CoordinateVocabulary.from_tokenizer(load_tokenizer(str(tiny_folder)))
    targets = TargetMaker(vocabulary, MatchingConfig(), TargetWeights(), capacity=4096)

    def learned(
        answer: str,
        objects: tuple[GroundTruthObject, ...] = (),
        finish_reason: str = "stop",
        arrived_at: float = 0.0,
        policy_step: int | None = None,
    ) -> TaughtRollout:
        record = Record("train:1", ("image.png",), 64, 64, objects)
        image = EncodedImage(np.zeros((16, 1536), np.float32), (1, 4, 4), b"")
        rollout = Rollout(
            request=RolloutRequest(EncodedRecord(record, (1, 2), (1, 1, 2), image), seed=0),
            token_ids=tuple(vocabulary.encode(answer)),
            finish_reason=finish_reason,
            policy_version=None if policy_step is None else PolicyVersion(incarnation="a", step=policy_step),
            token_logprobs=None,
            queue_s=0.0,
            decode_s=0.5,
            arrived_at=arrived_at,
        )
        return targets.of_rollout(rollout)

    return learned


@pytest.fixture
def plan_of() -> Callable[[int, Channel], StepPlan]:
    def plan(step: int, channel: Channel) -> StepPlan:
        return StepPlan(step, channel, epoch=0.25, groups=(), totals=StepTotals(2, 3), cursor=4)

    return plan

"""What a kind of optimizer step is. No torch: the training loop knows its steps by this alone.

To add one: its letter in shared/config/channels.py and in `plan.schedule.Channel`, its share of the steps in
shared/metrics.py, a file beside this one, and a row in table.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from learner.types import (
    DecodingStart,
    LostRecord,
    LostSample,
    Outcome,
    TaughtRecord,
    TaughtRollout,
    TaughtSiblings,
)

if TYPE_CHECKING:
    from learner.channels.last_pass import LastPass
    from learner.channels.reward_averages import RewardAverages
    from learner.channels.target_maker import TargetMaker
    from learner.data.encoding import Encoder
    from learner.losses.terms import PackLoss
    from learner.model.batch import PackedBatch
    from learner.model.loaded import LoadedModel
    from learner.plan.step_plan import StepPlan, StepTotals
    from shared.config.models import Config

Taught = TaughtRecord | TaughtRollout | TaughtSiblings | LostSample | LostRecord | DecodingStart
"""What became of a record, with what was measured on the way; or when a step's answers were asked for."""


class Objective(Protocol):
    """What is minimised: from a pack's tensors to its loss, with the gradient still to be taken."""

    def __call__(self, loaded: LoadedModel, batch: PackedBatch, totals: StepTotals) -> PackLoss: ...


class AnswerSource(Protocol):
    """Where the answers of a step that decodes come from; see decoding/ahead.py."""

    def answers(self, step: StepPlan, group: int) -> AsyncGenerator[Outcome, None]:
        """What became of each record of the group, once, as answers finish or in record order."""
        ...

    def start_of(self, step: StepPlan) -> DecodingStart:
        """When the step's answers were asked for; known once they all are."""
        ...


@dataclass(frozen=True)
class Sources:
    """What samples are made from; a kind of step takes what it needs."""

    encoder: Encoder
    answers: AnswerSource


@dataclass(frozen=True)
class StepParts:
    """What kinds of step are opened with; each takes what it needs."""

    config: Config
    last_pass: LastPass
    targets: TargetMaker
    averages: RewardAverages


class StepKind(Protocol):
    """One kind of optimizer step."""

    @property
    def objective(self) -> Objective: ...

    def teach(self, step: StepPlan, group: int, sources: Sources) -> AsyncGenerator[Taught, None]:
        """Yield what is made of each record of a group of the step, as soon as it is made."""
        ...

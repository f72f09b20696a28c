"""Everything that a training run holds, assembled by learner/build.py and driven by learner/train.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from learner.plan.time_split import LearnerActivity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from learner.channels.channel import Sources, StepKind
    from learner.channels.reward_averages import RewardAverages
    from learner.checkpoints.checkpoint import Checkpoints
    from learner.decoding.opening import Decoding
    from learner.evaluation.evaluate import Evaluation
    from learner.packing.pack_feed import GroupPacker
    from learner.plan.planner import Planner
    from learner.plan.progress import Progress
    from learner.plan.schedule import Channel
    from learner.plan.step_plan import StepPlan
    from learner.reporting.opening import Reporting
    from learner.training.opening import Training
    from learner.types import TrainingSample


@dataclass(frozen=True)
class Run:
    """The parts of one run. With `in_order` packs do not depend on when answers arrive."""

    planner: Planner
    progress: Progress
    sources: Sources
    channels: Mapping[Channel, StepKind]
    packer: GroupPacker[TrainingSample]
    in_order: bool
    averages: RewardAverages
    training: Training
    decoding: Decoding
    evaluation: Evaluation
    checkpoints: Checkpoints
    reporting: Reporting

    async def steps(self) -> AsyncIterator[StepPlan]:
        """Plan one step at a time from where the run stands until the plan's end, or until it is asked to stop."""
        while not (self.progress.done or self.progress.stop_requested):
            yield self.planner.plan(self.progress.step, self.progress.cursor)

    async def save_last_whole_step(self) -> None:
        """Leave the step that was broken off, and write a checkpoint of the one before unless there is one."""
        self.progress.stop_requested = True
        await self.training.lane(self.training.learner.abandon)
        if self.progress.step > self.progress.saved_step and self.checkpoints.due(self.progress):
            await self.save()

    async def save(self) -> None:
        """Write a checkpoint, to the end: what cancels a run waits for it."""
        with anyio.CancelScope(shield=True):
            await self.training.lane(self.checkpoints.save, self.progress)
            self.progress.saved_step = self.progress.step

    async def evaluate(self) -> Mapping[str, float]:
        """Score the weights of now, once nothing is decoded any more: a rollout has one version."""
        with self.decoding.account.learner.doing(LearnerActivity.WAITING_ROLLOUTS):
            await self.decoding.decoder.settled()
            return (await self.evaluation.run(self.progress)).metrics

"""Everything that a training run holds, wired by learner/build.py and driven by learner/train.py."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import anyio

from learner.checkpoints.checkpoint import Checkpoints
from learner.data.encoding import Encoder
from learner.decoding.ahead import Decoder
from learner.evaluation.evaluate import Evaluation
from learner.objectives.objective import Objective
from learner.packing.pack_feed import GroupPacker
from learner.plan.planner import Planner
from learner.plan.progress import Progress
from learner.plan.step_plan import StepPlan
from learner.plan.time_split import LearnerActivity, RunAccount
from learner.reporting.collapse_guard import Guard
from learner.reporting.monitor import Monitor
from learner.reporting.sinks import Sinks
from learner.teacher import Teacher
from learner.training.lane import ComputeLane
from learner.training.learner import Learner
from learner.types import TrainingSample


@dataclass(frozen=True)
class Objectives:
    """What each channel minimises. In Stage 1 the expectation is plain teacher forcing."""

    expectation: Objective
    rollout_matching: Objective


@dataclass(frozen=True)
class Run:
    """The parts of one run. With `in_order` packs do not depend on when answers arrive."""

    planner: Planner
    progress: Progress
    encoder: Encoder
    teacher: Teacher
    decoder: Decoder
    account: RunAccount
    packer: GroupPacker[TrainingSample]
    in_order: bool
    compute: ComputeLane
    learner: Learner
    objectives: Objectives
    evaluation: Evaluation
    checkpoints: Checkpoints
    sinks: Sinks
    monitor: Monitor
    guard: Guard

    async def steps(self) -> AsyncIterator[StepPlan]:
        """Plan one step at a time from where the run stands until the plan's end, or until it is asked to stop."""
        while not (self.progress.done or self.progress.stop_requested):
            yield self.planner.plan(self.progress.step, self.progress.cursor)

    async def save_last_whole_step(self) -> None:
        """Leave the step that was broken off, and write a checkpoint of the one before unless there is one."""
        await self.compute(self.learner.abandon)
        if self.progress.step > self.progress.saved_step and self.checkpoints.due(self.progress):
            await self.save()

    async def save(self) -> None:
        """Write a checkpoint, to the end: what cancels a run waits for it."""
        with anyio.CancelScope(shield=True):
            await self.compute(self.checkpoints.save, self.progress)
            self.progress.saved_step = self.progress.step

    async def evaluate(self) -> Mapping[str, float]:
        """Score the weights of now, once nothing is decoded any more: a rollout has one version."""
        with self.account.learner.doing(LearnerActivity.WAITING_ROLLOUTS):
            await self.decoder.settled()
            return (await self.evaluation.run(self.progress)).metrics

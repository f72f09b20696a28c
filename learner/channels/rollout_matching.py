"""Channel B: what the model wrote, matched to the ground truth and completed by what it missed."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from learner.channels.channel import Objective, Sources, StepKind, StepParts, Taught
from learner.channels.last_pass import SinglePass
from learner.channels.target_maker import TargetMaker
from learner.plan.step_plan import StepPlan
from learner.types import Rollout
from shared.errors import ProtocolError


@dataclass(frozen=True)
class RolloutSteps:
    """Teacher forcing of each answer as it arrives. A group that loses every answer is an error.

    One pass will do: the prefix is the model's own already, so its context needs no softening.
    """

    targets: TargetMaker
    objective: Objective

    async def teach(self, step: StepPlan, group: int, sources: Sources) -> AsyncGenerator[Taught, None]:
        num_lost = 0
        async with aclosing(sources.answers.answers(step, group)) as answers:
            async for answer in answers:
                if isinstance(answer, Rollout):
                    started = time.perf_counter()
                    taught = self.targets.of_rollout(answer)
                    yield taught.timed(time.perf_counter() - started)
                    continue
                yield answer
                num_lost += 1
                if num_lost == len(step.groups[group]):
                    raise ProtocolError(
                        f"every answer was lost; the last one, {answer.record.record_id}: {answer.message}"
                    )
        if group == len(step.groups) - 1:
            yield sources.answers.start_of(step)


def open_steps(parts: StepParts) -> StepKind:
    """Channel B: each answer is completed to a target, which is teacher-forced."""
    return RolloutSteps(parts.targets, SinglePass(parts.last_pass))

"""Steps that are taught the ground truth; with plain teacher forcing as their objective they are Stage 1's."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from learner.channels.channel import Objective, Sources, StepKind, StepParts, Taught
from learner.channels.last_pass import SinglePass
from learner.channels.target_maker import TargetMaker
from learner.plan.step_plan import StepPlan
from learner.types import LostRecord, TaughtRecord
from shared.errors import DataError


@dataclass(frozen=True)
class GroundTruthSteps:
    """Each record's own answer, in record order. A group that loses every record is an error."""

    targets: TargetMaker
    objective: Objective

    async def teach(self, step: StepPlan, group: int, sources: Sources) -> AsyncGenerator[Taught, None]:
        asked, num_lost = time.perf_counter(), 0
        async with aclosing(sources.encoder.encode_in_order(step.groups[group])) as records:
            async for encoded in records:
                if isinstance(encoded, LostRecord):
                    yield encoded
                    num_lost += 1
                    if num_lost == len(step.groups[group]):
                        raise DataError(f"every record of the step was lost; the last one: {encoded.message}")
                    continue
                encode_s = time.perf_counter() - asked
                yield TaughtRecord(self.targets.of_record(encoded), encode_s)
                asked = time.perf_counter()


def open_steps(parts: StepParts) -> StepKind:
    """Stage 1: cross-entropy on every token of the answer, coordinates too."""
    return GroundTruthSteps(parts.targets, SinglePass(parts.last_pass))

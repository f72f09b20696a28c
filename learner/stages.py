"""The stages between a step's plan and the compute lane.

    records ── ground_truth_targets ──────────────────┐
                                                      ├── packed ── the training loop
    records ── Decoder.results ── rollout_targets ────┘

Each is an async generator that is closed by the one that consumes it, so a failure on either side ends both and nothing
hangs.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import anyio.to_thread

from learner.data.encoding import Encoder, encode_in_order
from learner.decoding.ahead import Decoder
from learner.packing.pack_feed import GroupPacker, PackFeed
from learner.packing.packer import Pack
from learner.plan.step_plan import StepPlan
from learner.reporting.step_report import StepReport
from learner.teacher import Teacher
from learner.types import LostSample, TrainingSample
from shared.errors import ProtocolError
from shared.streams import prefetched

Made = TypeVar("Made")

TargetsOf = Callable[[int], AsyncGenerator[TrainingSample, None]]
"""What is taught of the step's group at this place."""


def ground_truth_targets(step: StepPlan, encoder: Encoder, teacher: Teacher, report: StepReport) -> TargetsOf:
    """Channel A's source: each record's own answer, in record order."""

    async def targets(group: int) -> AsyncGenerator[TrainingSample, None]:
        asked = time.perf_counter()
        async with aclosing(encode_in_order(step.groups[group], encoder)) as records:
            async for encoded in records:
                report.add_time("time/encode_s", time.perf_counter() - asked)
                yield teacher.ground_truth(encoded)
                asked = time.perf_counter()

    return targets


def rollout_targets(step: StepPlan, decoder: Decoder, teacher: Teacher, report: StepReport) -> TargetsOf:
    """Channel B's source: what is made of each answer as it arrives. A group that loses every answer is an error."""

    async def targets(group: int) -> AsyncGenerator[TrainingSample, None]:
        num_lost = 0
        async with aclosing(decoder.results(step, group, report)) as results:
            async for result in results:
                if isinstance(result, LostSample):
                    report.add_lost(result)
                    num_lost += 1
                    if num_lost == len(step.groups[group]):
                        raise ProtocolError(
                            f"every answer was lost; the last one, {result.request.uid}: {result.message}"
                        )
                    continue
                started = time.perf_counter()
                learned = teacher.rollout(result)
                report.add_rollout(learned, time.perf_counter() - started)
                yield learned.sample

    return targets


@asynccontextmanager
async def packed(
    step: StepPlan,
    targets_of: TargetsOf,
    packer: GroupPacker[TrainingSample],
    lay_out: Callable[[Pack[TrainingSample]], Made],
    in_order: bool = False,
) -> AsyncIterator[AsyncIterator[Made]]:
    """The step's packs, made and laid out while the body learns; no pack holds targets of two groups."""
    feed = PackFeed(packer, in_order)
    groups = (targets_of(group) for group in range(len(step.groups)))
    async with prefetched(on_a_thread(lay_out, feed.packs(groups)), depth=1) as packs:
        yield feed.asking(packs)


async def on_a_thread(
    lay_out: Callable[[Pack[TrainingSample]], Made], packs: AsyncGenerator[Pack[TrainingSample], None]
) -> AsyncGenerator[Made, None]:
    """Lay packs out on a worker thread, one at a time."""
    async with aclosing(packs):
        async for pack in packs:
            yield await anyio.to_thread.run_sync(lay_out, pack)

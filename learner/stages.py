"""The stages between a step's plan and the compute lane.

    records ── a kind of step: teach ── samples_of ── packed ── the training loop

Each is an async generator that is closed by the one that consumes it, so a failure on either side ends both and nothing
hangs.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import anyio.to_thread

from learner.channels.channel import Sources, StepKind, Taught
from learner.packing.pack_feed import GroupPacker, PackFeed
from learner.packing.packer import Pack
from learner.plan.step_plan import StepPlan
from learner.types import TaughtRecord, TaughtRollout, TaughtSiblings, TrainingSample
from shared.streams import prefetched

Made = TypeVar("Made")

SamplesOf = Callable[[int], AsyncGenerator[TrainingSample, None]]
"""What is learned of the step's group at this place."""


def samples_of(step: StepPlan, kind: StepKind, sources: Sources, book: Callable[[Taught], None]) -> SamplesOf:
    """What `kind` teaches of each group of the step; all that it makes is booked as it is made."""

    async def samples(group: int) -> AsyncGenerator[TrainingSample, None]:
        async with aclosing(kind.teach(step, group, sources)) as made:
            async for taught in made:
                book(taught)
                if isinstance(taught, TaughtRecord | TaughtRollout | TaughtSiblings):
                    for sample in taught.samples:
                        yield sample

    return samples


@asynccontextmanager
async def packed(
    step: StepPlan,
    samples: SamplesOf,
    packer: GroupPacker[TrainingSample],
    lay_out: Callable[[Pack[TrainingSample]], Made],
    in_order: bool = False,
) -> AsyncIterator[AsyncIterator[Made]]:
    """The step's packs, made and laid out while the body learns; no pack holds samples of two groups."""
    feed = PackFeed(packer, in_order)
    groups = (samples(group) for group in range(len(step.groups)))
    async with prefetched(on_a_thread(lay_out, feed.packs(groups)), depth=1) as packs:
        yield feed.asking(packs)


async def on_a_thread(
    lay_out: Callable[[Pack[TrainingSample]], Made], packs: AsyncGenerator[Pack[TrainingSample], None]
) -> AsyncGenerator[Made, None]:
    """Lay packs out on a worker thread, one at a time."""
    async with aclosing(packs):
        async for pack in packs:
            yield await anyio.to_thread.run_sync(lay_out, pack)

"""The stages between a step's plan and the compute lane, as async generators.

    records ── ground_truth_targets ──┐
                                      ├── fill_packs ── prefetched ── the training loop
    records ── rollout_targets ───────┘

Each generator is closed by the one that consumes it, so a failure on either side ends both and nothing hangs.
"""

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from hashlib import blake2b
from typing import Protocol

import anyio

from learner.data.prompt import Encoder
from learner.data.sample import EncodedRecord, TrainingSample
from learner.detection.record import Record
from learner.packing.packer import Pack
from learner.plan.step_plan import StepPlan
from learner.reporting.step_report import StepReport
from learner.rollouts.balance import RolloutPool
from learner.rollouts.remote import LostSample, Rollout, RolloutRequest
from learner.teacher import Teacher
from shared.errors import ProtocolError
from shared.streams import prefetched, ready_now, task_group
from shared.wire import PolicyVersion

Group = tuple[Record, ...]
TargetsOf = Callable[[Group], AsyncGenerator[TrainingSample, None]]


class GroupPacker(Protocol):
    """What fills packs: fed one sample at a time, asked for a pack whenever the learner could use one."""

    def add(self, sample: TrainingSample) -> None: ...
    def take(self) -> Pack[TrainingSample] | None: ...
    def close(self) -> list[Pack[TrainingSample]]: ...


def ground_truth_targets(encoder: Encoder, teacher: Teacher, report: StepReport) -> TargetsOf:
    """Channel A's source: each record's own answer, in record order."""

    async def targets(group: Group) -> AsyncGenerator[TrainingSample, None]:
        async with aclosing(encode_group(group, encoder, report)) as records:
            async for encoded in records:
                yield teacher.ground_truth(encoded)

    return targets


class RolloutSource:
    """Channel B's source: decode a group of records, yield what is made of each answer as it arrives.

    With `streaming` off all answers are awaited first; with `in_order` they are handed on in record order.
    """

    def __init__(
        self, encoder: Encoder, pool: RolloutPool, teacher: Teacher, run_seed: int, streaming: bool, in_order: bool
    ) -> None:
        self._encoder = encoder
        self._pool = pool
        self._teacher = teacher
        self._run_seed = run_seed
        self._streaming = streaming
        self._in_order = in_order

    def targets(self, step: StepPlan, version: PolicyVersion | None, report: StepReport) -> TargetsOf:
        async def targets(group: Group) -> AsyncGenerator[TrainingSample, None]:
            encoded = [each async for each in encode_group(group, self._encoder, report)]
            requests = decode_requests(encoded, self._run_seed, step.step)
            num_lost = 0
            async with aclosing(self._results(requests, version, report)) as results:
                async for result in results:
                    if isinstance(result, LostSample):
                        report.add_lost(result)
                        num_lost += 1
                        if num_lost == len(requests):
                            raise ProtocolError(
                                f"every answer was lost; the last one, {result.request.uid}: {result.message}"
                            )
                        continue
                    started = time.perf_counter()
                    learned = self._teacher.rollout(result)
                    report.add_rollout(learned, time.perf_counter() - started)
                    yield learned.sample

        return targets

    async def _results(
        self, requests: list[RolloutRequest], version: PolicyVersion | None, report: StepReport
    ) -> AsyncGenerator[Rollout | LostSample, None]:
        """The pool's results: as they finish, or in request order, or all at once after the last one."""
        report.decode_opened()
        async with aclosing(self._pool.decode(requests, version)) as results:
            stream = in_request_order(results, requests) if self._in_order else results
            if self._streaming:
                async for result in stream:
                    yield result
                return
            finished = [result async for result in stream]
        for result in finished:
            yield result


async def in_request_order(
    results: AsyncIterator[Rollout | LostSample], requests: list[RolloutRequest]
) -> AsyncIterator[Rollout | LostSample]:
    """Hold back what came early until its turn."""
    early: dict[str, Rollout | LostSample] = {}
    turns = iter(requests)
    turn = next(turns, None)
    async for result in results:
        early[result.request.uid] = result
        while turn is not None and turn.uid in early:
            yield early.pop(turn.uid)
            turn = next(turns, None)


async def fill_packs(
    step: StepPlan, targets_of: TargetsOf, packer: GroupPacker, in_order: bool = False
) -> AsyncGenerator[Pack[TrainingSample], None]:
    """Pack the step's targets, group by group.

    This generator resumes when the learner could use a pack, so before it asks for one it adds all that has arrived
    meanwhile. `in_order` adds one at a time instead, so that packs do not depend on timing.
    """
    for group in step.groups:
        async with prefetched(targets_of(group), depth=len(group)) as arrived:
            async for sample in arrived:
                packer.add(sample)
                if not in_order:
                    for waiting in ready_now(arrived):
                        packer.add(waiting)
                while (pack := packer.take()) is not None:
                    yield pack
        for pack in packer.close():
            yield pack


async def encode_group(group: Group, encoder: Encoder, report: StepReport) -> AsyncGenerator[EncodedRecord, None]:
    """Encode a group's records for a step, which reports how long it waited for them."""
    asked = time.perf_counter()
    async with aclosing(encode_in_order(group, encoder)) as records:
        async for encoded in records:
            report.add_time("time/encode_s", time.perf_counter() - asked)
            yield encoded
            asked = time.perf_counter()


async def encode_in_order(records: Sequence[Record], encoder: Encoder) -> AsyncGenerator[EncodedRecord, None]:
    """Encode records side by side; each is handed on in its turn as soon as it is done."""

    encoded: dict[int, EncodedRecord] = {}
    done = [anyio.Event() for _ in records]

    async def encode(place: int) -> None:
        encoded[place] = await encoder.encode(records[place])
        done[place].set()

    async with task_group() as tasks:
        for place in range(len(records)):
            tasks.start_soon(encode, place)
        for place in range(len(records)):
            await done[place].wait()
            yield encoded.pop(place)


def decode_requests(encoded: Sequence[EncodedRecord], run_seed: int, step: int) -> list[RolloutRequest]:
    """One request a record. At the border of two epochs a record can stand in a step twice: each is told apart."""
    asked: Counter[str] = Counter()
    requests = []
    for each in encoded:
        record_id = each.record.record_id
        requests.append(RolloutRequest(each, sampling_seed(run_seed, step, record_id), repeat=asked[record_id]))
        asked[record_id] += 1
    return requests


def sampling_seed(run_seed: int, step: int, record_id: str) -> int:
    """Seed of one answer, independent of batching, replica and order."""
    digest = blake2b(f"{run_seed}/{step}/{record_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1

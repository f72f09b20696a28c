"""Decoding for steps that need answers, begun as early as `max_lag` lets these be old.

    the loop ── open_next ── _decode, a task ── one hand-off a group ── answers ── the step that learns them

At most one step is decoded at a time, so a publish meets no open batch. While a step learns its own answers, few of
them wait, and when it is slow no new ones are asked for; what is decoded ahead waits whole, so memory holds the answers
of one step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from learner.decoding.pool import RolloutPool
from learner.decoding.requests import decode_answers, decode_requests
from learner.detection.record import Record
from learner.plan.planner import Planner
from learner.plan.schedule import Channel, decode_lags
from learner.plan.step_plan import StepPlan
from learner.plan.time_split import LearnerActivity, RunAccount
from learner.types import Answer, DecodingStart, LostRecord, Outcome, Rollout, RolloutRequest
from shared.errors import ProtocolError
from shared.streams import task_group
from shared.wire import PolicyVersion, Sampling

if TYPE_CHECKING:
    from learner.data.encoding import Encoder
    from learner.weight_sync.publisher import Published, WeightPublisher


@dataclass(frozen=True)
class Asked:
    """What steps of one kind ask of the servers, where it is not what the run's configuration says of all.

    `num_samples` answers to each record are numbered, None = one that is not.
    """

    sampling: Sampling | None = None
    num_samples: int | None = None
    return_logprobs: bool = False


@dataclass(frozen=True)
class DecodingRules:
    """How steps are decoded.

    `max_lag` is in optimizer steps, 0 = on-policy. Without `streaming` all answers are awaited before the first is
    handed on; with `in_order` they are handed on in record order. No step from `num_steps` on is decoded. At most
    `most_waiting` answers wait for the step that learns them while it runs.
    """

    run_seed: int
    num_steps: int
    max_lag: int = 0
    streaming: bool = True
    in_order: bool = False
    most_waiting: int = 256
    asked: Mapping[Channel, Asked] = field(default_factory=dict)

    def asked_by(self, step: StepPlan) -> Asked:
        return self.asked.get(step.channel, Asked())

    def room_for(self, num_answers: int) -> int:
        """How many of a group's answers may wait: all, when nobody reads them before the last is there."""
        return num_answers if self.max_lag or not self.streaming else min(num_answers, self.most_waiting)

    def describe(self, pattern: Sequence[str]) -> str:
        """For the user, once: how old the weights are that decode."""
        if self.max_lag == 0:
            return "max_lag 0: strictly on-policy, every step is decoded by the weights that it trains"
        lags = sorted(set(decode_lags(pattern, self.max_lag)))
        return (
            f"max_lag {self.max_lag}: with the pattern {', '.join(pattern)} a step is decoded from "
            f"{' or '.join(map(str, lags))} optimizer steps before it on, by the weights of then"
        )


class _StepDecoding:
    """The answers of one step: filled by one task, drained by the step.

    `published` lets the requests out, `requested` is set when the first of them are, `finished` when all have answers.
    """

    def __init__(self, plan: StepPlan, rules: DecodingRules) -> None:
        self.plan = plan
        self.version: PolicyVersion | None = None
        self.published, self.requested, self.finished = anyio.Event(), anyio.Event(), anyio.Event()
        self.requested_at = self.encode_s = 0.0
        sizes = [len(group) * plan.answers_per_record for group in plan.groups]
        self.hand_offs = [anyio.create_memory_object_stream[Outcome](rules.room_for(size)) for size in sizes]

    async def published_version(self) -> PolicyVersion | None:
        await self.published.wait()
        return self.version


class Decoder:
    """Decodes the next step that needs it on all servers while the loop is busy with this step or an earlier one."""

    def __init__(
        self,
        planner: Planner,
        encoder: Encoder,
        pool: RolloutPool,
        weights: WeightPublisher,
        account: RunAccount,
        rules: DecodingRules,
    ) -> None:
        self._planner = planner
        self._encoder = encoder
        self._pool = pool
        self._weights = weights
        self._account = account
        self._rules = rules
        self._tasks: TaskGroup | None = None
        self._opened: _StepDecoding | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Decode while the block runs. A decoding that fails ends the block with its error; leaving ends the rest."""
        async with task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    async def open_next(self, step: StepPlan) -> float:
        """Publish the weights and begin with the next step that decodes, once they are new enough for it.

        That is `step` itself, or, with a `max_lag`, one up to that many steps ahead of it. Returns the seconds that
        publishing took.
        """
        if self._opened is not None and self._opened.plan.step >= step.step:
            return 0.0
        within = min(self._rules.max_lag, self._rules.num_steps - 1 - step.step)
        plan = self._planner.next_decoding(step, within)
        if plan is None:
            return 0.0
        assert self._tasks is not None, "open_next is called inside `running`"
        self._opened = _StepDecoding(plan, self._rules)
        self._tasks.start_soon(self._decode, self._opened)
        published = await self.publish(step.step)
        self._opened.version = published.version
        self._opened.published.set()
        return published.seconds

    async def publish(self, step: int) -> Published:
        """Bring the servers to the weights after `step` optimizer steps; those that cannot take them are left out."""
        with self._account.syncing():
            published = await self._weights.publish_if_stale(step)
        self._pool.leave_out(published.left_out)
        return published

    async def settled(self) -> None:
        """Wait until no request is open, so that a publish finds none."""
        if self._opened is not None:
            await self._opened.finished.wait()

    async def answers(self, step: StepPlan, group: int) -> AsyncGenerator[Outcome, None]:
        """Yield what became of each record of a group of `step`, once.

        Raises ProtocolError for an answer by other weights than `max_lag` allows.
        """
        decoding = self._decoding_of(step)
        await decoding.requested.wait()  # until then the learner waits for data
        with self._account.learner.doing(LearnerActivity.WAITING_ROLLOUTS):
            if not self._rules.streaming:
                await decoding.finished.wait()
            async for result in decoding.hand_offs[group][1]:
                if isinstance(result, Rollout):
                    check_version(result, step.step, decoding.version, self._rules.max_lag)
                yield result

    def start_of(self, step: StepPlan) -> DecodingStart:
        """When the answers of `step` were asked for; known once they all are."""
        decoding = self._decoding_of(step)
        return DecodingStart(decoding.requested_at, decoding.encode_s)

    def _decoding_of(self, step: StepPlan) -> _StepDecoding:
        decoding = self._opened
        assert decoding is not None
        assert decoding.plan.step == step.step, "open_next opens a step before its answers are read"
        return decoding

    async def _decode(self, decoding: _StepDecoding) -> None:
        """Decode group by group; records are read while the weights are published and while others are decoded.

        What could not be asked for is handed on after a group's answers.
        """
        for group, (sender, _) in zip(decoding.plan.groups, decoding.hand_offs, strict=True):
            asked: deque[str] = deque()
            lost: list[LostRecord] = []
            requests = self._requests(decoding, group, asked, lost)
            kind = self._rules.asked_by(decoding.plan)
            decoded = decode_answers(
                self._pool,
                requests,
                decoding.published_version,
                kind.sampling,
                return_logprobs=kind.return_logprobs,
            )
            async with sender, aclosing(decoded) as answers:
                async for answer in in_request_order(answers, asked) if self._rules.in_order else answers:
                    await sender.send(answer)
                decoding.requested.set()
                for each in lost:
                    await sender.send(each)
        decoding.finished.set()

    async def _requests(
        self, decoding: _StepDecoding, group: Sequence[Record], asked: deque[str], lost: list[LostRecord]
    ) -> AsyncGenerator[RolloutRequest, None]:
        """Requests as records are read, none before the weights are published.

        Notes their uids in `asked`, and in `lost` what cannot be asked for.
        """
        encoded = self._encoder.encode_in_order(group)
        started = time.monotonic()
        num_samples = self._rules.asked_by(decoding.plan).num_samples
        made = decode_requests(encoded, self._rules.run_seed, decoding.plan.step, lost.append, num_samples)
        async with aclosing(made) as requests:
            async for request in requests:
                decoding.encode_s += time.monotonic() - started
                await decoding.published.wait()
                decoding.requested_at = decoding.requested_at or time.monotonic()
                decoding.requested.set()
                asked.append(request.uid)
                yield request
                started = time.monotonic()


def check_version(rollout: Rollout, step: int, asked: PolicyVersion | None, max_lag: int) -> None:
    """Raise ProtocolError unless the answer is of this learner's weights and at most `max_lag` updates old."""
    given = rollout.policy_version
    if asked is None or (
        given is not None and given.incarnation == asked.incarnation and 0 <= step - given.step <= max_lag
    ):
        return
    raise ProtocolError(
        f"{rollout.request.uid} was decoded by {given}, but step {step} takes answers of {asked.incarnation} that are "
        f"at most max_lag {max_lag} steps old; this is a defect of the server"
    )


async def in_request_order(results: AsyncIterator[Answer], asked: deque[str]) -> AsyncIterator[Answer]:
    """Hold back what came early until its turn; `asked` are the uids in order, of those requests that were made."""
    early: dict[str, Answer] = {}
    async for result in results:
        early[result.request.uid] = result
        while asked and asked[0] in early:
            yield early.pop(asked.popleft())

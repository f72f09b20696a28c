"""Decoding for B steps, begun as early as `max_lag` lets their answers be old.

    the loop ── open_next ── _decode, a task ── one hand-off a group ── results ── the B step's targets

At most one B step is decoded at a time, so a publish meets no open batch, and memory holds the answers of one step.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from learner.accounting import LearnerActivity, RunAccount
from learner.data.prompt import Encoder
from learner.plan.planner import Planner
from learner.plan.schedule import decode_lags
from learner.plan.step_plan import StepPlan
from learner.reporting.step_report import StepReport
from learner.requests import decode_requests, encode_in_order
from learner.rollouts.balance import RolloutPool
from learner.rollouts.remote import LostSample, Rollout, RolloutRequest
from learner.weight_sync.publisher import WeightPublisher
from shared.errors import ProtocolError
from shared.streams import task_group
from shared.wire import PolicyVersion

Result = Rollout | LostSample


@dataclass(frozen=True)
class DecodingRules:
    """How B steps are decoded.

    `max_lag` is in optimizer steps, 0 = on-policy. Without `streaming` all answers are awaited before the first is
    handed on; with `in_order` they are handed on in record order. No step from `num_steps` on is decoded.
    """

    run_seed: int
    num_steps: int
    max_lag: int = 0
    streaming: bool = True
    in_order: bool = False

    def told(self, pattern: Sequence[str]) -> str:
        """For the user, once: how old the weights are that decode."""
        if self.max_lag == 0:
            return "max_lag 0: strictly on-policy, every B step is decoded by the weights that it trains"
        lags = sorted(set(decode_lags(pattern, self.max_lag)))
        return (
            f"max_lag {self.max_lag}: with the pattern {', '.join(pattern)} a B step is decoded from "
            f"{' or '.join(map(str, lags))} optimizer steps before it on, by the weights of then"
        )


class _StepDecoding:
    """The answers of one B step: filled by one task, drained by the step, with room for all of them.

    `published` lets the requests out, `requested` is set when the first of them are, `finished` when all have answers.
    """

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self.version: PolicyVersion | None = None
        self.published, self.requested, self.finished = anyio.Event(), anyio.Event(), anyio.Event()
        self.requested_at = self.encode_s = 0.0
        self.hand_offs = [anyio.create_memory_object_stream[Result](len(group)) for group in plan.groups]


class Decoder:
    """Decodes the next B step on all servers while the loop is busy with this step or an earlier one."""

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

    async def open_next(self, step: StepPlan, report: StepReport) -> None:
        """Publish the weights and begin with the next B step, once they are new enough for it.

        That is `step` itself, or, with a `max_lag`, a B step up to that many steps ahead of it.
        """
        if self._opened is not None and self._opened.plan.step >= step.step:
            return
        within = min(self._rules.max_lag, self._rules.num_steps - 1 - step.step)
        plan = self._planner.next_b(step, within)
        if plan is None:
            return
        assert self._tasks is not None, "open_next is called inside `running`"
        self._opened = _StepDecoding(plan)
        self._tasks.start_soon(self._decode, self._opened)
        with self._account.syncing():
            published = await self._weights.publish_if_stale(step.step)
        report.add_time("time/sync_s", published.seconds)
        self._opened.version = published.version
        self._opened.published.set()

    async def settled(self) -> None:
        """Wait until no request is open, so that a publish finds none."""
        if self._opened is not None:
            await self._opened.finished.wait()

    async def results(self, step: StepPlan, group: int, report: StepReport) -> AsyncGenerator[Result, None]:
        """Yield what became of each record of a group of the B step `step`, once.

        Raises ProtocolError for an answer by other weights than `max_lag` allows.
        """
        decoding = self._opened
        assert decoding is not None
        assert decoding.plan.step == step.step, "open_next opens a step before its results are read"
        await decoding.requested.wait()  # until then the learner waits for data
        if group == 0:
            report.decoded(decoding.requested_at, decoding.encode_s)
        with self._account.learner.doing(LearnerActivity.WAITING_ROLLOUTS):
            if not self._rules.streaming:
                await decoding.finished.wait()
            async for result in decoding.hand_offs[group][1]:
                if isinstance(result, Rollout):
                    check_version(result, step.step, decoding.version, self._rules.max_lag)
                yield result

    async def _decode(self, decoding: _StepDecoding) -> None:
        """Read the records while the weights are published, then decode group by group."""
        for group, (sender, _) in zip(decoding.plan.groups, decoding.hand_offs, strict=True):
            started = time.monotonic()
            encoded = [each async for each in encode_in_order(group, self._encoder)]
            decoding.encode_s += time.monotonic() - started
            await decoding.published.wait()
            requests = decode_requests(encoded, self._rules.run_seed, decoding.plan.step)
            decoding.requested_at = decoding.requested_at or time.monotonic()
            decoding.requested.set()
            async with sender, aclosing(self._pool.decode(requests, decoding.version)) as results:
                async for result in in_request_order(results, requests) if self._rules.in_order else results:
                    sender.send_nowait(result)
        decoding.finished.set()


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


async def in_request_order(results: AsyncIterator[Result], requests: Sequence[RolloutRequest]) -> AsyncIterator[Result]:
    """Hold back what came early until its turn."""
    early: dict[str, Result] = {}
    turns = iter(requests)
    turn = next(turns, None)
    async for result in results:
        early[result.request.uid] = result
        while turn is not None and turn.uid in early:
            yield early.pop(turn.uid)
            turn = next(turns, None)

"""One decode over several servers: who is given what, and what becomes of it when a server fails or lags."""

import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from learner.decoding.in_flight import InFlight, OpenPost
from learner.decoding.replica import Replica, Restore
from learner.decoding.work_queue import MAX_FAILURES, Post, RequestGroup, WorkQueue
from learner.servers.http import ServerBusy
from learner.types import Answer, LostSample, RolloutRequest
from shared.errors import ServerUnavailable, VersionConflict, WeightSyncFailed
from shared.streams import task_group
from shared.wire import PolicyVersion, Sampling

FIRST_PROBE_S, LONGEST_PROBE_S = 0.2, 2.0
"""Seconds between two probes of a server that is away; each is twice the one before."""
MOST_AHEAD = 32
"""Requests that wait for a server. No more are taken in, so that their images need not be held."""
MOST_UNREAD = 64
"""Results that wait for their reader. While there are so many, nothing new is asked for."""


class Scheduler:
    """Hands requests to replicas as these have room, and their results to `sender`, until every request has one.

    One task takes `requests` in, `run` drains `queue.waiting` into POSTs, each a task of its own. Those tasks fill
    `sender`, put back what a server left unanswered, and set `_changed` when there may be something to hand out, which
    wakes `run`.

    When all is handed out, what a server has had for long is asked of another one too, unless batches are fixed; the
    answer that comes first counts, and the other is cancelled. Both are right: the seed is the request's.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        queue: WorkQueue,
        sampling: Sampling,
        version: PolicyVersion | None,
        sender: MemoryObjectSendStream[Answer],
        restore: Restore | None,
        patience_s: float,
        *,
        return_logprobs: bool = False,
    ) -> None:
        self._replicas = replicas
        self._queue = queue
        self._sampling = sampling
        self._wanted = version
        self._versions: dict[Replica, PolicyVersion | None] = dict.fromkeys(replicas, version)
        self._sender = sender
        self._restore = restore
        self._patience_s = patience_s
        self._return_logprobs = return_logprobs
        self._in_flight = InFlight()
        self._next_hedge_s = math.inf
        self._changed, self._taken = anyio.Event(), anyio.Event()
        self._served_at = time.monotonic()
        self._last_failure = "none was configured"

    async def run(self, requests: AsyncIterator[RolloutRequest]) -> None:
        """Raise ServerUnavailable when no replica has served for `patience_s`, and what ends the whole call."""
        async with self._sender, task_group() as tasks:
            tasks.start_soon(self._take_in, requests)
            for replica in self._replicas:
                if replica.away:
                    tasks.start_soon(self._bring_back, replica, 0.0)
            while not self._queue.done:
                self._changed = anyio.Event()
                look_again_s = self._patience_left()
                if self._sender.statistics().current_buffer_used < MOST_UNREAD:
                    for replica, post in (*self._posts(), *self._hedged_posts()):
                        tasks.start_soon(self._decode, replica, post, tasks)
                    look_again_s = min(look_again_s, self._next_hedge_s)
                with anyio.move_on_after(look_again_s):
                    await self._changed.wait()
            tasks.cancel_scope.cancel()

    def wake(self) -> None:
        """To be called when a result has been read."""
        self._changed.set()

    async def _take_in(self, requests: AsyncIterator[RolloutRequest]) -> None:
        """Let requests wait for a server, a few ahead of what servers have room for."""
        most_waiting = len(self._replicas) if self._queue.fixed else MOST_AHEAD
        async for request in requests:
            self._queue.add(request)
            self._changed.set()
            while len(self._queue.waiting) >= most_waiting:
                self._taken = anyio.Event()
                await self._taken.wait()
        self._queue.end()
        self._changed.set()

    def _posts(self) -> Iterator[tuple[Replica, Post]]:
        """Give what waits, group by group, to the replica with room and the fewest outstanding tokens."""
        assigned: dict[Replica, list[RequestGroup]] = {}
        waiting = self._queue.waiting
        while waiting:
            roomy = [replica for replica in self._replicas if replica.has_room_for(len(waiting[0]))]
            if not roomy:
                break
            least = min(roomy, key=lambda replica: replica.num_tokens)
            least.book(waiting[0], self._sampling.max_new_tokens)
            assigned.setdefault(least, []).append(waiting.popleft())
            self._taken.set()
        for replica, groups in assigned.items():
            for post in self._queue.posts(groups):
                yield replica, post

    def _hedged_posts(self) -> Iterator[tuple[Replica, Post]]:
        """What is late at one replica, one by one, for another to decode too; notes when to look for more of it."""
        self._next_hedge_s = math.inf
        if self._queue.fixed or not self._queue.all_handed_out:
            return
        for request, other, in_s in self._in_flight.hedges(self._replicas):
            if in_s > 0:
                self._next_hedge_s = in_s
            else:
                other.book((request,), self._sampling.max_new_tokens)
                yield other, Post([(request,)])

    async def _decode(self, replica: Replica, post: Post, tasks: TaskGroup) -> None:
        """Decode one POST; the first failure of a replica sets it on its way back."""
        try:
            with self._in_flight.opened(post, replica) as opened:
                await self._stream(opened)
        except ServerBusy as busy:
            self._last_failure = str(busy)
            self._put_back(post)
            await replica.rest(busy)
        except (ServerUnavailable, VersionConflict) as error:
            self._last_failure = str(error)
            for request in self._queue.give_up(post):
                message = f"{MAX_FAILURES} servers failed while they decoded it; the last failure: {error}"
                self._arrived(LostSample(request, "server_failed", message, retryable=False), post)
            self._put_back(post)
            if not replica.away:
                replica.leave(error, len(post.unanswered))
                tasks.start_soon(self._bring_back, replica, FIRST_PROBE_S)
        self._changed.set()

    async def _stream(self, opened: OpenPost) -> None:
        replica, post, longest = opened.replica, opened.post, self._sampling.max_new_tokens
        try:
            stream = replica.server.decode(
                uuid4().hex,
                tuple(post.unanswered.values()),
                self._sampling,
                self._versions[replica],
                self._return_logprobs,
            )
            async with aclosing(stream) as results:
                async for result in results:
                    if post.unanswered.pop(result.request.uid, None) is not None:
                        replica.release((result.request,), longest)
                        replica.answered(opened.sent_at)
                        self._arrived(result, post)
        finally:
            replica.release(post.unanswered.values(), longest)

    def _arrived(self, result: Answer, post: Post) -> None:
        self._served_at = time.monotonic()
        self._changed.set()
        if isinstance(result, LostSample):
            elsewhere = self._in_flight.holders(result.request.uid)
            if elsewhere or (result.retryable and self._queue.retry(result.request, post)):
                return
        self._in_flight.finish(result.request, self._sampling.max_new_tokens)
        if self._queue.close(result.request):
            self._sender.send_nowait(result)

    def _put_back(self, post: Post) -> None:
        """Let what a POST left unanswered wait again, but for what another one has too."""
        for uid in tuple(post.unanswered):
            if self._in_flight.holders(uid):
                del post.unanswered[uid]
        self._queue.put_back(post)
        self._changed.set()

    async def _bring_back(self, replica: Replica, delay_s: float) -> None:
        """Probe a replica until it is back with the right weights, or nobody has served for too long."""
        while replica.away:
            await anyio.sleep(delay_s)
            delay_s = min(max(FIRST_PROBE_S, 2 * delay_s), LONGEST_PROBE_S)
            try:
                self._versions[replica] = await replica.rejoin(self._wanted, self._restore)
            except (ServerUnavailable, VersionConflict, WeightSyncFailed) as error:
                self._last_failure = str(error)
            self._changed.set()

    def _patience_left(self) -> float:
        """Seconds until patience ends, infinite while a replica serves. Raises ServerUnavailable when it has ended."""
        now = time.monotonic()
        if any(replica.serving for replica in self._replicas):
            self._served_at = now
            return math.inf
        left_s = self._served_at + self._patience_s - now
        if left_s <= 0:
            raise ServerUnavailable(
                f"no rollout server is left for {self._queue.num_open} samples, and none served within "
                f"{self._patience_s:g} s (vllm.server.timeout_s); the last failure: {self._last_failure}"
            )
        return left_s

"""One decode over several servers: who is given what, and what becomes of it when a server fails."""

import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from learner.rollouts.parcels import MAX_FAILURES, Parcel, Parcels, Post
from learner.rollouts.remote import LostSample, Rollout, ServerBusy
from learner.rollouts.replica import Replica, Restore
from shared.errors import ServerUnavailable, VersionConflict, WeightSyncFailed
from shared.streams import task_group
from shared.wire import PolicyVersion, Sampling

Result = Rollout | LostSample

FIRST_PROBE_S, LONGEST_PROBE_S = 0.2, 2.0
"""Seconds between two probes of a server that is away; each is twice the one before."""


class Dispatch:
    """Hands parcels to replicas as these have room, and their results to `sender`, until every request has one.

    `run` drains `parcels.waiting` into POSTs, each a task of its own. Those tasks fill `sender`, put back what a server
    left unanswered, and set `_changed` when there may be something to hand out, which wakes `run`.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        parcels: Parcels,
        sampling: Sampling,
        version: PolicyVersion | None,
        sender: MemoryObjectSendStream[Result],
        restore: Restore | None,
        patience_s: float,
        *,
        return_logprobs: bool = False,
    ) -> None:
        self._replicas = replicas
        self._parcels = parcels
        self._sampling = sampling
        self._wanted = version
        self._versions: dict[Replica, PolicyVersion | None] = dict.fromkeys(replicas, version)
        self._sender = sender
        self._restore = restore
        self._patience_s = patience_s
        self._return_logprobs = return_logprobs
        self._changed = anyio.Event()
        self._served_at = time.monotonic()
        self._last_failure = "none was configured"

    async def run(self) -> None:
        """Raise ServerUnavailable when no replica has served for `patience_s`, and what ends the whole call."""
        async with self._sender, task_group() as tasks:
            for replica in self._replicas:
                if replica.away:
                    tasks.start_soon(self._bring_back, replica, 0.0)
            while self._parcels.num_open:
                self._check_patience()
                self._changed = anyio.Event()
                for replica, post in self._posts():
                    tasks.start_soon(self._decode, replica, post, tasks)
                await self._changed.wait()
            tasks.cancel_scope.cancel()

    def _posts(self) -> Iterator[tuple[Replica, Post]]:
        """Give what waits, parcel by parcel, to the replica with room and the fewest outstanding tokens."""
        assigned: dict[Replica, list[Parcel]] = {}
        waiting = self._parcels.waiting
        while waiting:
            roomy = [replica for replica in self._replicas if replica.has_room_for(len(waiting[0]))]
            if not roomy:
                break
            least = min(roomy, key=lambda replica: replica.num_tokens)
            least.book(waiting[0], self._sampling.max_new_tokens)
            assigned.setdefault(least, []).append(waiting.popleft())
        for replica, parcels in assigned.items():
            for post in self._parcels.posts(parcels):
                yield replica, post

    async def _decode(self, replica: Replica, post: Post, tasks: TaskGroup) -> None:
        """Decode one POST; the first failure of a replica sets it on its way back."""
        try:
            await self._stream(replica, post)
        except ServerBusy as busy:
            self._parcels.put_back(post)
            self._changed.set()
            await replica.rest(busy.retry_after_s)
        except (ServerUnavailable, VersionConflict) as error:
            self._last_failure = str(error)
            for request in self._parcels.give_up(post):
                message = f"{MAX_FAILURES} servers failed while they decoded it; the last failure: {error}"
                self._arrived(LostSample(request, "server_failed", message, retryable=False))
            self._parcels.put_back(post)
            if not replica.away:
                replica.leave(error, len(post.unanswered))
                tasks.start_soon(self._bring_back, replica, FIRST_PROBE_S)
        self._changed.set()

    async def _stream(self, replica: Replica, post: Post) -> None:
        requests, longest = tuple(post.unanswered.values()), self._sampling.max_new_tokens
        try:
            stream = replica.server.decode(
                uuid4().hex, requests, self._sampling, self._versions[replica], self._return_logprobs
            )
            async with aclosing(stream) as results:
                async for result in results:
                    replica.release((post.unanswered.pop(result.request.uid),), longest)
                    self._arrived(result)
        finally:
            replica.release(post.unanswered.values(), longest)

    def _arrived(self, result: Result) -> None:
        again = isinstance(result, LostSample) and result.retryable and self._parcels.retry(result.request)
        if not again and self._parcels.close(result.request):
            self._sender.send_nowait(result)
        self._served_at = time.monotonic()
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

    def _check_patience(self) -> None:
        """Looked at whenever something changed, which a probe that found nobody does too."""
        now = time.monotonic()
        if any(not replica.away for replica in self._replicas):
            self._served_at = now
        elif now - self._served_at >= self._patience_s:
            raise ServerUnavailable(
                f"no rollout server is left for {self._parcels.num_open} samples, and none came back within "
                f"{self._patience_s:g} s (vllm.server.timeout_s); the last failure: {self._last_failure}"
            )

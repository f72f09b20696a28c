"""Several rollout servers as one: spread by outstanding tokens, stream back together, move work off a dead one."""

import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Sequence

import anyio

from learner.decoding.replica import Replica, Restore
from learner.decoding.scheduler import Scheduler
from learner.decoding.work_queue import WorkQueue
from learner.servers.rollouts import RolloutServer
from learner.types import Answer, RolloutRequest
from shared.streams import task_group
from shared.wire import PolicyVersion, Sampling, ServerLimits


def window_of(limits: ServerLimits) -> int:
    """Samples that a server is to hold: what it decodes side by side, and enough to go on with while more is sent."""
    return limits.max_num_seqs + max(2, limits.max_num_seqs // 4)


LARGEST_REQUEST = 64
"""Samples of one POST unless told otherwise: with their images they stay far below what a server takes as one body."""


class RolloutPool:
    """The servers of a run.

    `samples_per_request` bounds one POST, `windows` the samples that each server holds at once (None = no bound): what
    no server has yet goes to whoever has room first. With `fixed_batches` requests are cut into batches of
    `samples_per_request` in their order, whichever server takes them, and a batch that was broken off is decoded again
    whole: an engine whose answers depend on what is decoded side by side then repeats them.

    A server that fails is probed until it is back. `restore` then gives it the weights it lacks, and it joins the call
    that is running; None takes it as it is. A call waits `patience_s` seconds for one that can serve.
    """

    def __init__(
        self,
        servers: Sequence[RolloutServer],
        sampling: Sampling,
        samples_per_request: int = LARGEST_REQUEST,
        windows: Sequence[int] | None = None,
        *,
        fixed_batches: bool = False,
        restore: Restore | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self.windows: Sequence[int | None] = windows or [None] * len(servers)
        self._replicas = tuple(map(Replica, servers, self.windows))
        self._sampling = sampling
        self._samples_per_request = min([samples_per_request, *(windows or ())])
        self._fixed_batches = fixed_batches
        self._restore = restore
        self._patience_s = patience_s

    def leave_out(self, names: Collection[str]) -> None:
        """Ask nothing of these servers, which lack the weights, until they have been brought up."""
        for replica in self._replicas:
            replica.away = replica.away or replica.server.name in names

    async def decode(
        self,
        requests: Sequence[RolloutRequest] | AsyncIterable[RolloutRequest],
        version: PolicyVersion | None,
        sampling: Sampling | None = None,
        *,
        return_logprobs: bool = False,
    ) -> AsyncGenerator[Answer, None]:
        """Yield every request's result once, in the order in which they finish; uids are unique within a call.

        Requests are taken in as there is room for them, results handed on by one task for each open POST. The hand-off
        has room for whatever is in flight, so a slow caller never holds up a stream; it holds up new requests. Raises
        ServerUnavailable when no server can serve.
        """
        sender, receiver = anyio.create_memory_object_stream[Answer](max_buffer_size=math.inf)
        queue = WorkQueue(self._samples_per_request, self._fixed_batches)
        scheduler = Scheduler(
            self._replicas,
            queue,
            sampling or self._sampling,
            version,
            sender,
            self._restore,
            self._patience_s,
            return_logprobs=return_logprobs,
        )
        # The receiver outlives the tasks: one that has its answer already goes on to send it, cancelled or not.
        with receiver:
            async with task_group() as tasks:
                tasks.start_soon(scheduler.run, _one_by_one(requests))
                async for result in receiver:
                    scheduler.wake()
                    yield result


async def _one_by_one(
    requests: Sequence[RolloutRequest] | AsyncIterable[RolloutRequest],
) -> AsyncIterator[RolloutRequest]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request

"""Several rollout servers as one: spread by outstanding tokens, stream back together, move work off a dead one."""

from collections.abc import AsyncGenerator, Sequence

import anyio

from learner.rollouts.dispatch import Dispatch, Result
from learner.rollouts.parcels import Parcels
from learner.rollouts.remote import RolloutRequest, RolloutServer
from learner.rollouts.replica import Replica, Restore
from shared.streams import task_group
from shared.wire import PolicyVersion, Sampling

LARGEST_REQUEST = 64
"""Samples of one POST unless told otherwise: with their images they stay far below what a server takes as one body."""


class RolloutPool:
    """The servers of a run.

    `samples_per_request` bounds one POST, `in_flight_per_server` the samples that a server holds at once (None = no
    bound). With `fixed_batches` requests are cut into batches of `samples_per_request` in their order, whichever
    server takes them, and a batch that was broken off is decoded again whole: an engine whose answers depend on what
    is decoded side by side then repeats them.

    A server that fails is probed until it is back. `restore` then gives it the weights it lacks, and it joins the call
    that is running; None takes it as it is. A call waits `patience_s` seconds for one that can serve.
    """

    def __init__(
        self,
        servers: Sequence[RolloutServer],
        sampling: Sampling,
        samples_per_request: int = LARGEST_REQUEST,
        in_flight_per_server: int | None = None,
        *,
        fixed_batches: bool = False,
        restore: Restore | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self.in_flight_per_server = in_flight_per_server
        self._replicas = tuple(Replica(server, in_flight_per_server) for server in servers)
        self._sampling = sampling
        self._samples_per_request = min(samples_per_request, in_flight_per_server or samples_per_request)
        self._fixed_batches = fixed_batches
        self._restore = restore
        self._patience_s = patience_s

    async def decode(
        self,
        requests: Sequence[RolloutRequest],
        version: PolicyVersion | None,
        sampling: Sampling | None = None,
        *,
        return_logprobs: bool = False,
    ) -> AsyncGenerator[Result, None]:
        """Yield every request's result once, in the order in which they finish.

        The hand-off is filled by one task for each open POST and drained by the caller. It holds as many items as
        there are requests, so a slow caller never holds up a stream. Raises ServerUnavailable when no server can serve.
        """
        sender, receiver = anyio.create_memory_object_stream[Result](max_buffer_size=max(1, len(requests)))
        parcels = Parcels(requests, self._samples_per_request, self._fixed_batches)
        dispatch = Dispatch(
            self._replicas,
            parcels,
            sampling or self._sampling,
            version,
            sender,
            self._restore,
            self._patience_s,
            return_logprobs=return_logprobs,
        )
        async with task_group() as tasks:
            tasks.start_soon(dispatch.run)
            try:
                async for result in receiver:
                    yield result
            finally:
                # Before the receiver closes, so that the tasks end by the cancellation and not by a broken stream.
                tasks.cancel_scope.cancel()
                receiver.close()

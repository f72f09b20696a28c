"""Several rollout servers as one: spread by outstanding tokens, stream back together, move work off a dead one."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from uuid import uuid4

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from learner.rollouts.remote import LostSample, Rollout, RolloutRequest, RolloutServer
from shared.errors import ServerUnavailable
from shared.streams import task_group
from shared.wire import PolicyVersion, Sampling

Result = Rollout | LostSample

LARGEST_REQUEST = 64
"""Samples of one POST unless told otherwise: with their images they stay far below what a server takes as one body."""


class RolloutPool:
    """The servers of a run.

    `samples_per_request` bounds one POST, `in_flight_per_server` bounds the samples a server holds at once (None = no
    bound). A server that fails is left out of the rest of that call, and what it had not answered goes to the others.
    """

    def __init__(
        self,
        servers: Sequence[RolloutServer],
        sampling: Sampling,
        samples_per_request: int = LARGEST_REQUEST,
        in_flight_per_server: int | None = None,
    ) -> None:
        self.servers = tuple(servers)
        self._sampling = sampling
        self._samples_per_request = samples_per_request
        self.in_flight_per_server = in_flight_per_server

    async def decode(
        self,
        requests: Sequence[RolloutRequest],
        version: PolicyVersion | None,
        sampling: Sampling | None = None,
    ) -> AsyncGenerator[Result, None]:
        """Yield every request's result once, in the order in which they finish.

        The hand-off between the network and the caller holds as many items as there are requests, so a slow caller
        never holds up a stream. Raises ServerUnavailable when no server is left.
        """
        call = _Call(self.servers, sampling or self._sampling, version)
        sender, receiver = anyio.create_memory_object_stream[Result](max_buffer_size=max(1, len(requests)))
        async with task_group() as tasks:
            tasks.start_soon(self._serve, call, requests, sender)
            async with receiver:
                async for result in receiver:
                    yield result
            tasks.cancel_scope.cancel()

    async def _serve(
        self, call: "_Call", requests: Sequence[RolloutRequest], sender: MemoryObjectSendStream[Result]
    ) -> None:
        async with sender:
            waiting = list(requests)
            while waiting:
                shares = call.assign(waiting)
                unanswered: list[RolloutRequest] = []
                async with task_group() as tasks:
                    for server, share in shares:
                        in_flight = self.in_flight_per_server or len(share)
                        chunk = min(self._samples_per_request, in_flight)
                        slots = anyio.Semaphore(in_flight // chunk)
                        for start in range(0, len(share), chunk):
                            tasks.start_soon(call.run, server, share[start : start + chunk], slots, sender, unanswered)
                waiting = unanswered


class _Call:
    """One decode over the pool: which servers still take part, and what is being retried."""

    def __init__(self, servers: Sequence[RolloutServer], sampling: Sampling, version: PolicyVersion | None) -> None:
        self._alive = list(servers)
        self._sampling = sampling
        self._version = version
        self._retried: set[str] = set()
        self._last_failure = "none was configured"

    def assign(self, requests: Sequence[RolloutRequest]) -> list[tuple[RolloutServer, list[RolloutRequest]]]:
        """Give each request to the server with the fewest outstanding tokens so far."""
        if not self._alive:
            raise ServerUnavailable(
                f"no rollout server is left for {len(requests)} samples; the last failure: {self._last_failure}"
            )
        shares: list[tuple[RolloutServer, list[RolloutRequest]]] = [(server, []) for server in self._alive]
        outstanding = [0] * len(shares)
        for request in requests:
            least = outstanding.index(min(outstanding))
            shares[least][1].append(request)
            outstanding[least] += len(request.encoded.prompt_token_ids) + self._sampling.max_new_tokens
        return [(server, share) for server, share in shares if share]

    async def run(
        self,
        server: RolloutServer,
        requests: Sequence[RolloutRequest],
        slots: anyio.Semaphore,
        sender: MemoryObjectSendStream[Result],
        unanswered: list[RolloutRequest],
    ) -> None:
        """Decode one chunk; whatever stays open is put back for another server, a retryable error once."""
        open_requests = {request.uid: request for request in requests}
        async with slots:
            try:
                stream = server.decode(uuid4().hex, requests, self._sampling, self._version)
                async with aclosing(stream) as results:
                    async for result in results:
                        del open_requests[result.request.uid]
                        if isinstance(result, LostSample) and self._try_again(result):
                            unanswered.append(result.request)
                        else:
                            await sender.send(result)
            except ServerUnavailable as error:
                self._last_failure = str(error)
                if server in self._alive:
                    self._alive.remove(server)
                unanswered.extend(open_requests.values())

    def _try_again(self, lost: LostSample) -> bool:
        if not lost.retryable or lost.request.uid in self._retried:
            return False
        self._retried.add(lost.request.uid)
        return True

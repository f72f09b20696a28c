"""The compute lane: one thread that does all model work, while the event loop goes on."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, TypeVar

import anyio

from learner.plan.time_split import LearnerAccount, LearnerActivity
from shared.accounting import TimeAccount

P = ParamSpec("P")
T = TypeVar("T")

KEPT_INTERVALS = 65536


@dataclass(frozen=True)
class BusyInterval:
    """A call's time on the lane, in seconds of `time.monotonic`."""

    start: float
    end: float


class ComputeLane:
    """Runs functions one after another, in the order of their calls, on a thread of its own.

    Used as a context manager; leaving it waits for the call that runs and ends the thread. A caller that is cancelled
    while it waits its turn takes its call back; one that is cancelled while its call runs leaves when that has ended,
    so that nothing touches the model behind the caller's back.
    """

    def __init__(self, account: LearnerAccount | None = None) -> None:
        """`account` is told while there is a call."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._account = account or TimeAccount(LearnerActivity)
        self._intervals: deque[BusyInterval] = deque(maxlen=KEPT_INTERVALS)

    def __enter__(self) -> "ComputeLane":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `function(*args)` on the lane; its error is raised here. Raises RuntimeError on a closed lane."""
        with self._account.doing(LearnerActivity.COMPUTING):
            return await self._run(lambda: function(*args, **kwargs))

    def busy_s(self, start: float, end: float) -> float:
        """Seconds within [start, end] of `time.monotonic` in which finished calls ran; old ones are forgotten."""
        return sum(max(0.0, min(end, each.end) - max(start, each.start)) for each in tuple(self._intervals))

    async def _run(self, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        ended = anyio.Event()
        call = self._thread.submit(self._timed, function)
        call.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
        try:
            await ended.wait()
        except asyncio.CancelledError:
            if not call.cancel():
                with anyio.CancelScope(shield=True):
                    await ended.wait()
            raise
        return call.result()

    def _timed(self, call: Callable[[], T]) -> T:
        start = time.monotonic()
        try:
            return call()
        finally:
            self._intervals.append(BusyInterval(start, time.monotonic()))

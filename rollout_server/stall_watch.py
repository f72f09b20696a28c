"""Noticing an engine that has work and gets nowhere, as one does whose device hangs."""

import time
from collections.abc import Callable

from rollout_server.admission import Admission
from rollout_server.engines.base import Engine
from shared.wire import ComponentHealth


class StallWatch:
    """Not live while requests have been unanswered for `timeout_s` seconds without a token.

    It looks when it is asked, and counts from the newest of three: the last batch that came in, the last time that it
    saw new tokens, and the last time that `num_unanswered` was 0. That is counted by the open streams, so that a
    request which the engine has lost is missed; answers that wait for a slow reader are no work.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        num_unanswered: Callable[[], int],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._num_unanswered = num_unanswered
        self._timeout_s = timeout_s
        self._clock = clock
        self._moved_at = clock()
        self._num_tokens = 0

    def health(self) -> ComponentHealth:
        num_tokens, num_unanswered, now = self._engine.load().generated_tokens, self._num_unanswered(), self._clock()
        if num_tokens != self._num_tokens or not num_unanswered:
            self._num_tokens, self._moved_at = num_tokens, now
        stalled_s = now - max(self._moved_at, self._admission.admitted_at)
        if stalled_s <= self._timeout_s:
            return ComponentHealth(name="progress", live=True, ready=True)
        reason = f"{num_unanswered} requests and no token for {stalled_s:.0f} s (stall_timeout_s)"
        return ComponentHealth(name="progress", live=False, ready=False, reason=reason)

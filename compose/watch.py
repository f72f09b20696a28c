"""Keeping rollout servers running while the learner works."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from compose.readiness import Probe, ServerProcess

PROBE_INTERVAL_S = 1.0
KILL_GRACE_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Seconds before the first restart of a server; each pause is twice the one before."""


@dataclass(frozen=True)
class WatchRules:
    """When a server counts as dead, and how often it is started again.

    Health is answered in constant time, so one that serves and is silent for `silent_s` seconds is frozen, however much
    it has to do. While it loads it may be silent, but not longer than `loading_s`.
    """

    max_restarts: int
    silent_s: float
    loading_s: float


class ServerWatch:
    """Looks after one server that has been ready once.

        serving ──died, failed or silent──▶ stopped ──pause──▶ loading ──ready──▶ serving
                                             │  ▲                 │
                      given up ◀─no restart──┘  └──died, too slow─┘

    `tell` is given a line for every change; it says what happened, why, and which attempt follows.
    """

    def __init__(self, server: ServerProcess, probe: Probe, rules: WatchRules, tell: Callable[[str], None]) -> None:
        self._server = server
        self._probe = probe
        self._rules = rules
        self._tell = tell
        self._num_restarts = 0
        self._loading = False
        self._heard_at = self._looked_at = time.monotonic()
        self._restart_at: float | None = None
        self.given_up = False

    def look(self) -> None:
        """Look once, and do what has to be done. Takes a moment, or `KILL_GRACE_S` for a server that is ended."""
        now = time.monotonic()
        if self.given_up:
            return
        if self._restart_at is not None:
            if now >= self._restart_at:
                self._restart(now)
        elif why := self._verdict(now):
            self._end(why, now)

    def _verdict(self, now: float) -> str:
        """Why the server has to be ended, empty when it may go on."""
        if (code := self._server.child.exit_code) is not None:
            return f"died with code {code}"
        if now - self._looked_at < PROBE_INTERVAL_S:
            return ""
        self._looked_at = now
        failure = self._probe.failure(self._server.base_url)
        if failure:
            return f"has failed: {failure}"
        if self._loading:
            return self._loading_verdict(now)
        if failure is not None:
            self._heard_at = now
        silent_s = now - self._heard_at
        return f"has not answered for {silent_s:.0f} s" if silent_s > self._rules.silent_s else ""

    def _loading_verdict(self, now: float) -> str:
        waits_for = self._probe.waits_for(self._server.base_url)
        if not waits_for:
            self._loading, self._heard_at = False, now
            self._tell(f"{self._server.name}: ready again")
            return ""
        is_late = now - self._heard_at > self._rules.loading_s
        return f"was not ready in {self._rules.loading_s:g} s: {waits_for}" if is_late else ""

    def _end(self, why: str, now: float) -> None:
        server, rules = self._server, self._rules
        server.stop(KILL_GRACE_S)
        if self._num_restarts >= rules.max_restarts:
            self.given_up = True
            follows = f"it stays down (max_restarts {rules.max_restarts})"
        else:
            pause_s = min(FIRST_PAUSE_S * 2**self._num_restarts, LONGEST_PAUSE_S)
            self._restart_at = now + pause_s
            self._num_restarts += 1
            follows = f"restart {self._num_restarts} of {rules.max_restarts} in {pause_s:g} s"
        log = server.child.spec.log
        self._tell(f"{server.name} {why}; {follows}. {log} ends with\n{server.child.log_tail()}")

    def _restart(self, now: float) -> None:
        self._server.restart()
        self._restart_at, self._loading, self._heard_at = None, True, now

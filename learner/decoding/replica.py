"""One server of the pool, as the pool keeps book of it."""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import anyio

from learner.plan.time_split import ServerActivity
from learner.servers.http import ServerBusy
from learner.servers.rollouts import RolloutServer
from learner.types import RolloutRequest
from shared.wire import PolicyVersion

LOG = logging.getLogger(__name__)

Restore = Callable[[str], Awaitable[PolicyVersion]]
"""Brings the server of this name to the weights that were published last; returns their version."""

NUM_REMEMBERED, FEWEST_REMEMBERED = 64, 8
"""Answers by which a replica's speed is known, and how many of them it takes to know it."""


class Replica:
    """What a server holds at the moment, and whether it may be given more.

        serving ──refuses for now (429)──▶ resting ──Retry-After──▶ serving
           └─────fails─────▶ away ──answers probes, holds the version──▶ serving

    `window` bounds the samples it holds at once (None = no bound).
    """

    def __init__(self, server: RolloutServer, window: int | None) -> None:
        self.server = server
        self.window = window
        self.away = self.resting = False
        self.num_samples = self.num_tokens = 0
        self._refused_at: float | None = None
        self._took: deque[float] = deque(maxlen=NUM_REMEMBERED)

    @property
    def serving(self) -> bool:
        """Whether there is hope of an answer: not while it is away, or refuses all it is asked for."""
        return not self.away and (self._refused_at is None or (self.resting and self.num_samples > 0))

    @property
    def longest_s(self) -> float | None:
        """Seconds of its slowest answer lately, None while it has given too few."""
        return max(self._took) if len(self._took) >= FEWEST_REMEMBERED else None

    def has_room_for(self, num_samples: int) -> bool:
        """Whether so many samples may be sent now; an idle server takes any number."""
        if self.away or self.resting:
            return False
        return self.window is None or not self.num_samples or self.num_samples + num_samples <= self.window

    def book(self, requests: Iterable[RolloutRequest], max_new_tokens: int) -> None:
        """Note what it is given; a request weighs its prompt and the longest answer."""
        for request in requests:
            self.num_samples += 1
            self.num_tokens += len(request.encoded.prompt_token_ids) + max_new_tokens

    def release(self, requests: Iterable[RolloutRequest], max_new_tokens: int) -> None:
        """Note what it no longer has."""
        for request in requests:
            self.num_samples -= 1
            self.num_tokens -= len(request.encoded.prompt_token_ids) + max_new_tokens

    def answered(self, sent_at: float) -> None:
        """Note an answer to what was sent at `sent_at` (`time.monotonic`)."""
        self._took.append(time.monotonic() - sent_at)
        if self._refused_at is not None and sent_at > self._refused_at:
            self._refused_at = None

    async def rest(self, busy: ServerBusy) -> None:
        """Give it nothing for a while, as it asked for; said once until it takes work again."""
        if self._refused_at is None:
            LOG.warning("%s; what it refuses waits, and is asked for again every %g s", busy, busy.retry_after_s)
        self._refused_at = time.monotonic()
        self.resting = True
        try:
            await anyio.sleep(busy.retry_after_s)
        finally:
            self.resting = False

    def leave(self, why: object, num_unanswered: int) -> None:
        """Note that it failed."""
        LOG.warning("%s; %d samples of it wait for another server, or for this one to come back", why, num_unanswered)
        self.away = True

    async def rejoin(self, version: PolicyVersion | None, restore: Restore | None) -> PolicyVersion | None:
        """Bring it back once it answers; returns the version to ask it for.

        Raises ServerUnavailable while it does not answer, WeightSyncFailed when it does not take the weights.
        """
        await self.server.probe()
        if version is not None and restore is not None and (await self.server.info()).policy_version != version:
            with self.server.account.doing(ServerActivity.SYNCING):
                version = await restore(self.server.name)
        self.away, self._refused_at = False, None
        LOG.warning("%s is back%s", self.server.name, f" with the weights {version}" if version else "")
        return version

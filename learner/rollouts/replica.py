"""One server of the pool, as the pool keeps book of it."""

import logging
from collections.abc import Awaitable, Callable, Iterable

import anyio

from learner.rollouts.remote import RolloutRequest, RolloutServer
from shared.wire import PolicyVersion

LOG = logging.getLogger(__name__)

Restore = Callable[[str], Awaitable[PolicyVersion]]
"""Brings the server of this name to the weights that were published last; returns their version."""


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

    async def rest(self, seconds: float) -> None:
        """Give it nothing for a while, as it asked for."""
        self.resting = True
        try:
            await anyio.sleep(seconds)
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
            version = await restore(self.server.name)
        self.away = False
        LOG.warning("%s is back%s", self.server.name, f" with the weights {version}" if version else "")
        return version

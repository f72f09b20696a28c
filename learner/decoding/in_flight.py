"""What servers are decoding at the moment, and what of it is better asked for once more."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from learner.decoding.replica import Replica
from learner.decoding.work_queue import Post
from learner.types import RolloutRequest

HEDGE_AFTER = 1.5
"""An answer is late when it takes so many times the slowest of late of the server that could be asked instead."""


@dataclass(frozen=True, eq=False)
class OpenPost:
    """A POST that is under way; cancelling `scope` ends it."""

    post: Post
    replica: Replica
    sent_at: float = field(default_factory=time.monotonic)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class InFlight:
    """The open POSTs of one call."""

    def __init__(self) -> None:
        self._open: list[OpenPost] = []

    @contextmanager
    def opened(self, post: Post, replica: Replica) -> Iterator[OpenPost]:
        """A POST is under way inside the block, which ends early when others have answered all of it."""
        opened = OpenPost(post, replica)
        self._open.append(opened)
        try:
            with opened.scope:
                yield opened
        finally:
            self._open.remove(opened)

    def holders(self, uid: str) -> list[OpenPost]:
        """The POSTs in which a request is unanswered."""
        return [opened for opened in self._open if uid in opened.post.unanswered]

    def finish(self, request: RolloutRequest, longest_answer: int) -> None:
        """The request has its result: whoever else decodes it may stop."""
        for opened in self.holders(request.uid):
            del opened.post.unanswered[request.uid]
            opened.replica.release((request,), longest_answer)
            if not opened.post.unanswered:
                opened.scope.cancel()

    def hedges(self, replicas: Sequence[Replica]) -> Iterator[tuple[RolloutRequest, Replica, float]]:
        """What is late where another server has room, oldest first: the request, that server, and 0.

        What no server but one has comes once; the last item is the first that is not late yet, with the seconds until
        it is. The room is looked at anew for each, so that what came before may be booked.
        """
        known = [replica.longest_s for replica in replicas if replica.longest_s is not None]
        now = time.monotonic()
        num_holders = Counter(uid for opened in self._open for uid in opened.post.unanswered)
        for opened in self._open if known else ():
            for uid, request in tuple(opened.post.unanswered.items()):
                roomy = [each for each in replicas if each is not opened.replica and each.has_room_for(1)]
                if not roomy or num_holders[uid] > 1:
                    continue
                other = min(roomy, key=lambda replica: replica.num_tokens)
                in_s = opened.sent_at + HEDGE_AFTER * (other.longest_s or max(known)) - now
                yield request, other, max(0.0, in_s)
                if in_s > 0:
                    return

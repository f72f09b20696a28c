"""What is still to be decoded in one call, cut into the pieces that travel together. Pure."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from learner.rollouts.remote import RolloutRequest

MAX_FAILURES = 4
"""A request that was under way when so many servers failed is suspected to be the reason, and is given up."""

Parcel = tuple[RolloutRequest, ...]


class Post:
    """The parcels of one POST, and which of their requests have no answer yet."""

    def __init__(self, parcels: Sequence[Parcel]) -> None:
        self.parcels = tuple(parcels)
        self.unanswered = {request.uid: request for parcel in parcels for request in parcel}


class Parcels:
    """Requests one by one, or, with `fixed_batches`, in batches of `samples_per_post` that stay together.

    A uid is open until it has its result; `waiting` holds what no server has. What a POST leaves open waits again, in
    front of the others.
    """

    def __init__(self, requests: Sequence[RolloutRequest], samples_per_post: int, fixed_batches: bool) -> None:
        self._samples_per_post = samples_per_post
        self._fixed = fixed_batches
        size = samples_per_post if fixed_batches else 1
        self.waiting = deque(tuple(requests[start : start + size]) for start in range(0, len(requests), size))
        self._open = {request.uid for request in requests}
        self._retried: set[str] = set()
        self._failures: Counter[str] = Counter()

    @property
    def num_open(self) -> int:
        return len(self._open)

    def posts(self, parcels: Sequence[Parcel]) -> Iterator[Post]:
        """Cut what goes to one server into POSTs; a fixed batch has one of its own."""
        size = 1 if self._fixed else self._samples_per_post
        for start in range(0, len(parcels), size):
            yield Post(parcels[start : start + size])

    def close(self, request: RolloutRequest) -> bool:
        """Note a result; False when the request had one already, as after its batch was decoded again."""
        was_open = request.uid in self._open
        self._open.discard(request.uid)
        return was_open

    def retry(self, request: RolloutRequest) -> bool:
        """Let a request whose answer failed wait again, once; False when it already has."""
        if request.uid in self._retried:
            return False
        self._retried.add(request.uid)
        self.waiting.append((request,))
        return True

    def give_up(self, post: Post) -> list[RolloutRequest]:
        """Count a server's failure against what it held; takes out and returns what has seen too many."""
        self._failures.update(post.unanswered.keys())
        suspects = [request for uid, request in post.unanswered.items() if self._failures[uid] >= MAX_FAILURES]
        for request in suspects:
            del post.unanswered[request.uid]
        return suspects

    def put_back(self, post: Post) -> None:
        """Let what a POST left unanswered wait again, a fixed batch whole."""
        again = post.parcels if self._fixed else [(request,) for request in post.unanswered.values()]
        for parcel in reversed(again):
            if any(request.uid in post.unanswered for request in parcel):
                self.waiting.appendleft(parcel)

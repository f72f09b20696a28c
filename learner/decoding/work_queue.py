"""What is still to be decoded in one call, cut into the pieces that travel together. Pure."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from learner.types import RolloutRequest

MAX_FAILURES = 4
"""A request that was under way when so many servers failed is suspected to be the reason, and is given up."""

RequestGroup = tuple[RolloutRequest, ...]


class Post:
    """The groups of one POST, and which of their requests have no answer yet."""

    def __init__(self, groups: Sequence[RequestGroup]) -> None:
        self.groups = tuple(groups)
        self.unanswered = {request.uid: request for group in groups for request in group}


class WorkQueue:
    """Requests one by one, or, with `fixed_batches`, in batches of `samples_per_post` that stay together.

    A uid is open from when it is added until it has its result; `waiting` holds what no server has. What a POST leaves
    open waits again, in front of the others.
    """

    def __init__(self, samples_per_post: int, fixed_batches: bool) -> None:
        self.fixed = fixed_batches
        self.waiting: deque[RequestGroup] = deque()
        self._samples_per_post = samples_per_post
        self._gathered: list[RolloutRequest] = []
        self._ended = False
        self._open: set[str] = set()
        self._retried: set[str] = set()
        self._failures: Counter[str] = Counter()

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def done(self) -> bool:
        """Whether all there will be has its result."""
        return self._ended and not self._open

    @property
    def all_handed_out(self) -> bool:
        return self._ended and not self.waiting

    def add(self, request: RolloutRequest) -> None:
        """Let a request wait; in a fixed batch, as soon as that is whole."""
        self._open.add(request.uid)
        self._gathered.append(request)
        if not self.fixed or len(self._gathered) == self._samples_per_post:
            self._seal()

    def end(self) -> None:
        """No more will be added."""
        self._seal()
        self._ended = True

    def posts(self, groups: Sequence[RequestGroup]) -> Iterator[Post]:
        """Cut what goes to one server into POSTs; a fixed batch has one of its own."""
        size = 1 if self.fixed else self._samples_per_post
        for start in range(0, len(groups), size):
            yield Post(groups[start : start + size])

    def close(self, request: RolloutRequest) -> bool:
        """Note a result; False when the request had one already, from another server or as part of a batch."""
        was_open = request.uid in self._open
        self._open.discard(request.uid)
        return was_open

    def retry(self, request: RolloutRequest, post: Post) -> bool:
        """Let a request whose answer failed wait again with its batch, once; False when it already has."""
        if request.uid in self._retried:
            return False
        self._retried.add(request.uid)
        self._wait([group for group in post.groups if any(each.uid == request.uid for each in group)])
        return True

    def give_up(self, post: Post) -> list[RolloutRequest]:
        """Count a server's failure against what it held; takes out and returns what has seen too many."""
        self._failures.update(post.unanswered.keys())
        suspects = [request for uid, request in post.unanswered.items() if self._failures[uid] >= MAX_FAILURES]
        for request in suspects:
            del post.unanswered[request.uid]
        return suspects

    def put_back(self, post: Post) -> None:
        """Let what a POST left open wait again in front, a fixed batch whole."""
        left = self._open & post.unanswered.keys()
        self._wait([group for group in post.groups if any(request.uid in left for request in group)], in_front=True)

    def _seal(self) -> None:
        if self._gathered:
            self.waiting.append(tuple(self._gathered))
            self._gathered = []

    def _wait(self, groups: Sequence[RequestGroup], in_front: bool = False) -> None:
        """Queue groups, unless they wait already, as a batch does that is broken off after a retry of its own."""
        there = {id(group) for group in self.waiting}
        new = [group for group in groups if id(group) not in there]
        self.waiting.extendleft(reversed(new)) if in_front else self.waiting.extend(new)

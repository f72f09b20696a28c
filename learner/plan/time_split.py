"""What both sides of a run spend their seconds on, as the learner sees it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum

from shared.accounting import TimeAccount


class LearnerActivity(Enum):
    """Of what goes on at once the first counts, so the learner waits only while it does nothing else.

    An evaluation is waiting for rollouts, a checkpoint is computing.
    """

    SYNCING = "syncing"
    COMPUTING = "computing"
    WAITING_ROLLOUTS = "waiting_rollouts"
    WAITING_DATA = "waiting_data"


class ServerActivity(Enum):
    """A server decodes while it has a request; one that has none is starved on a B step and idle on an A step."""

    DECODING = "decoding"
    SYNCING = "syncing"
    STARVED = "starved"
    IDLE = "idle"


LearnerAccount = TimeAccount[LearnerActivity]
ServerAccount = TimeAccount[ServerActivity]


@dataclass(frozen=True)
class Lap:
    """Seconds by activity between two looks at the accounts; those of the servers are summed over them."""

    learner: Mapping[LearnerActivity, float]
    servers: Mapping[ServerActivity, float]

    @property
    def seconds(self) -> float:
        """The wall time of the lap."""
        return sum(self.learner.values())


class RunAccount:
    """The accounts of one run: the learner's own and one a server."""

    def __init__(self, learner: LearnerAccount, servers: Sequence[ServerAccount]) -> None:
        self.learner = learner
        self._servers = tuple(servers)

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """Weights are published inside the block."""
        with ExitStack() as stack:
            stack.enter_context(self.learner.doing(LearnerActivity.SYNCING))
            for server in self._servers:
                stack.enter_context(server.doing(ServerActivity.SYNCING))
            yield

    def want_rollouts(self) -> None:
        """From now on a server without a request is starved."""
        for server in self._servers:
            server.begin(ServerActivity.STARVED)

    def want_no_rollouts(self) -> None:
        """From now on a server without a request is idle by schedule."""
        for server in self._servers:
            server.end(ServerActivity.STARVED)

    def lap(self) -> Lap:
        """The seconds since the last lap, all of them."""
        laps = [server.lap() for server in self._servers]
        return Lap(self.learner.lap(), {activity: sum(lap[activity] for lap in laps) for activity in ServerActivity})

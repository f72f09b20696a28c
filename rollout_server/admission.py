"""Who may come in: caps on open samples, and a door that weight updates shut."""

import math
import time
from enum import Enum

import anyio

from rollout_server.refusal import Refusal
from shared.accounting import TimeAccount
from shared.wire import ServerLimits

RETRY_AFTER_S = 1


class Activity(Enum):
    """What a server's seconds are spent on.

    Of those that go on at once the first counts: a door that waits for open batches is still decoding.
    """

    DECODING = "decoding"
    SYNCING = "syncing"
    IDLE = "idle"


class Admission:
    """Counts the samples of open batches. Lives on the event loop; only `drained` waits."""

    def __init__(self, limits: ServerLimits, account: TimeAccount[Activity]) -> None:
        self._limits = limits
        self._account = account
        self._open: dict[str, int] = {}
        self._shut_because: str | None = None
        self._emptied = anyio.Event()
        self.admitted_at = 0.0
        """When the last batch came in, by `time.monotonic`."""

    @property
    def open_samples(self) -> int:
        return sum(self._open.values())

    def admit(self, batch_id: str, num_samples: int) -> None:
        """Take a batch in, or raise Refusal: never accept what cannot be held."""
        limit = self._limits.max_open_samples
        if self._shut_because is not None:
            raise Refusal(503, "loading", self._shut_because, retry_after_s=RETRY_AFTER_S)
        if batch_id in self._open:
            raise Refusal(400, "batch_id_in_use", f"batch {batch_id!r} is still open; choose an id of its own for each")
        if num_samples > limit:
            raise Refusal(413, "batch_too_large", f"{num_samples} samples exceed max_open_samples {limit}; send fewer")
        if self.open_samples + num_samples > limit:
            raise Refusal(
                429,
                "too_many_samples",
                f"{self.open_samples} samples are open and {num_samples} more exceed max_open_samples {limit}",
                retry_after_s=RETRY_AFTER_S,
            )
        self._open[batch_id] = num_samples
        self.admitted_at = time.monotonic()
        self._account.begin(Activity.DECODING)

    def release(self, batch_id: str) -> None:
        """A batch has ended."""
        del self._open[batch_id]
        self._account.end(Activity.DECODING)
        if not self._open:
            self._emptied.set()

    async def shut(self, reason: str, drain_timeout_s: float = math.inf) -> None:
        """Let nobody in, and wait until the open batches have ended; on a timeout reopen and raise Refusal."""
        self._shut_because = reason
        if self._open:
            self._emptied = anyio.Event()
            with anyio.move_on_after(drain_timeout_s):
                await self._emptied.wait()
        if self._open:
            self._shut_because = None
            raise Refusal(
                409,
                "batches_open",
                f"{self.open_samples} samples of {len(self._open)} batches were still open after {drain_timeout_s:g} s",
                retry_after_s=RETRY_AFTER_S,
            )
        self._account.begin(Activity.SYNCING)

    def reopen(self) -> None:
        """Let batches in again."""
        self._shut_because = None
        self._account.end(Activity.SYNCING)

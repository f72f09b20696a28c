"""Where the server's seconds go. Pure, but for the clock it is given."""

import time
from collections.abc import Callable
from enum import Enum


class Activity(Enum):
    """What the server is doing; always exactly one."""

    IDLE = "idle"
    DECODING = "decoding"
    SYNCING = "syncing"


class TimeAccount:
    """Adds up the seconds of each activity; together they are all seconds since the start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._activity = Activity.IDLE
        self._seconds = dict.fromkeys(Activity, 0.0)

    def switch(self, activity: Activity) -> None:
        """From now on, time is spent on `activity`."""
        now = self._clock()
        self._seconds[self._activity] += now - self._since
        self._since, self._activity = now, activity

    def seconds(self) -> dict[Activity, float]:
        """Seconds by activity, up to now."""
        self.switch(self._activity)
        return dict(self._seconds)

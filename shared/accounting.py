"""Where a process's seconds go. Pure, but for the clock it is given."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Generic, TypeVar

Activity = TypeVar("Activity", bound=Enum)


class TimeAccount(Generic[Activity]):
    """Adds up the seconds of each activity; together they are all seconds since the start.

    Several activities may go on at once. Each moment is booked to the one of them that stands first in the enumeration,
    or to its last member when nothing goes on. Lives on the event loop; no locks.
    """

    def __init__(self, activities: type[Activity], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = dict.fromkeys(activities, 0)
        self._nothing = list(activities)[-1]
        self._seconds = dict.fromkeys(activities, 0.0)
        self._lapped = dict(self._seconds)
        self._since = clock()

    def begin(self, activity: Activity) -> None:
        """From now on `activity` goes on, once more than before."""
        self._book()
        self._open[activity] += 1

    def end(self, activity: Activity) -> None:
        """`activity` goes on once less. Raises ValueError when it does not go on."""
        if not self._open[activity]:
            raise ValueError(f"{activity} does not go on, so it cannot end")
        self._book()
        self._open[activity] -= 1

    @contextmanager
    def doing(self, activity: Activity) -> Iterator[None]:
        """`activity` goes on inside the block."""
        self.begin(activity)
        try:
            yield
        finally:
            self.end(activity)

    def seconds(self) -> dict[Activity, float]:
        """Seconds by activity, up to now."""
        self._book()
        return dict(self._seconds)

    def lap(self) -> dict[Activity, float]:
        """Seconds by activity since the last lap, or since the start."""
        seconds = self.seconds()
        lap = {activity: seconds[activity] - before for activity, before in self._lapped.items()}
        self._lapped = seconds
        return lap

    def _book(self) -> None:
        now = self._clock()
        activity = next((each for each, times in self._open.items() if times), self._nothing)
        self._seconds[activity] += now - self._since
        self._since = now

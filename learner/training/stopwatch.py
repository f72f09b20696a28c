"""Times work where it runs."""

import time
from itertools import pairwise

import torch


class Stopwatch:
    """Seconds between marks, as `device` ran what was asked of it between them; to mark is not to wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moments: list[float] = []
        self._events: list[torch.Event] = []
        self.mark()

    def mark(self) -> None:
        if self._device.type == "cpu":
            self._moments.append(time.perf_counter())
            return
        event = torch.Event(device=self._device, enable_timing=True)
        event.record()
        self._events.append(event)

    def laps(self) -> list[float]:
        """Seconds from each mark to the next, once the device has passed the last one."""
        if self._device.type == "cpu":
            return [end - start for start, end in pairwise(self._moments)]
        self._events[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self._events)]

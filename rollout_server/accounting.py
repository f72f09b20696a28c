"""What a server's seconds are spent on."""

from enum import Enum


class Activity(Enum):
    """Of those that go on at once the first counts: a door that waits for open batches is still decoding."""

    DECODING = "decoding"
    SYNCING = "syncing"
    IDLE = "idle"

"""Packing where a group of samples must fill one pack, or where each sample is a pack of its own."""

import math

from learner.data.sample import TrainingSample
from learner.packing.packer import MOST_PACKS_WAITING, Pack
from shared.errors import DataError


class OnePack:
    """Micro mode: whatever is added until `close` makes one pack, or is an error with both numbers."""

    most_waiting = most_tokens = math.inf

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: list[TrainingSample] = []

    def add(self, sample: TrainingSample) -> None:
        self._waiting.append(sample)

    def take(self, hungry: bool = False) -> None:
        return None

    def close(self) -> list[Pack[TrainingSample]]:
        items, self._waiting = tuple(self._waiting), []
        num_tokens = sum(item.num_tokens for item in items)
        if num_tokens > self._capacity:
            raise DataError(
                f"the {len(items)} targets of a micro-step have {num_tokens} tokens, but global_max_length is "
                f"{self._capacity}; lower rollout_generate_batch_size, raise global_max_length, or use "
                "channel_b.mode: step"
            )
        return [Pack(items, num_tokens, self._capacity)] if items else []


class NoPacking:
    """`training.packing: false`: each sample is handed out at once, in a pack of its own."""

    def __init__(self, capacity: int, buffer: int = 256) -> None:
        self.most_waiting: float = buffer
        self.most_tokens: float = MOST_PACKS_WAITING * capacity
        self._capacity = capacity
        self._waiting: list[TrainingSample] = []

    def add(self, sample: TrainingSample) -> None:
        self._waiting.append(sample)

    def take(self, hungry: bool = False) -> Pack[TrainingSample] | None:
        if not self._waiting:
            return None
        sample = self._waiting.pop(0)
        return Pack((sample,), sample.num_tokens, self._capacity)

    def close(self) -> list[Pack[TrainingSample]]:
        return [pack for pack in iter(self.take, None)]

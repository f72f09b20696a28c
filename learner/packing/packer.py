"""Fills packs of bounded length with items of any kind."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from learner.types import TrainingSample
from shared.errors import DataError

if TYPE_CHECKING:
    from shared.config.models import Config


class Sized(Protocol):
    """Anything that takes up `num_tokens` tokens of a pack."""

    @property
    def num_tokens(self) -> int: ...


Item = TypeVar("Item", bound=Sized)

MOST_PACKS_WAITING = 8
"""So many packs of targets may wait: enough to choose from. Targets hold their images, 24 kB of pixels a token."""


@dataclass(frozen=True)
class Pack(Generic[Item]):
    """Items that are learned in one pass. `num_tokens` is their sum, at most `capacity`."""

    items: tuple[Item, ...]
    num_tokens: int
    capacity: int

    @property
    def fill(self) -> float:
        """Share of the capacity that is used, 0..1."""
        return self.num_tokens / self.capacity


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack lengths (tokens) best-fit decreasing; each index appears once. Takes O(n log n) comparisons.

    The number of packs is at most 11/9 of the best possible plus 4 (Johnson et al. 1974). Raises DataError for a length
    above the capacity.
    """
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, pack), ascending
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        _check_fits(length, capacity)
        place = bisect_left(rooms, (length, 0))
        if place == len(rooms):
            packs.append([index])
            insort(rooms, (capacity - length, len(packs) - 1))
        else:
            room, pack = rooms.pop(place)
            packs[pack].append(index)
            insort(rooms, (room - length, pack))
    return packs


class Packer(Generic[Item]):
    """Packs items as they come: each goes into the open pack that it fills best.

    Filled by the stage that makes targets, drained by the one that feeds the learner; nothing in it ever waits. What
    `take` returns depends on the order of calls alone, so a caller who takes after every `add` gets the same packs
    whenever the items come in the same order.
    """

    def __init__(self, capacity: int, min_fill: float, buffer: int = 256) -> None:
        """`capacity` in tokens; `min_fill` is the share of it (0..1) from which a pack is handed out.

        At most `buffer` items wait, and `MOST_PACKS_WAITING` times the capacity in tokens: beyond that the fullest pack
        is handed out whatever its fill.
        """
        self._capacity = capacity
        self._min_tokens = min_fill * capacity
        self.most_waiting: float = buffer
        self.most_tokens: float = MOST_PACKS_WAITING * capacity
        self._open: list[list[Item]] = []
        self._tokens: list[int] = []
        self._num_waiting = 0

    def add(self, item: Item) -> None:
        """Place an item. Raises DataError when it is longer than the capacity."""
        _check_fits(item.num_tokens, self._capacity)
        room = self._capacity - item.num_tokens
        fitting = [place for place, tokens in enumerate(self._tokens) if tokens <= room]
        if fitting:
            best = max(fitting, key=self._tokens.__getitem__)
            self._open[best].append(item)
            self._tokens[best] += item.num_tokens
        else:
            self._open.append([item])
            self._tokens.append(item.num_tokens)
        self._num_waiting += 1

    def take(self, hungry: bool = False) -> Pack[Item] | None:
        """Hand out the fullest pack, or None when it is not filled to `min_fill` and no more wait than may.

        A hungry caller has nothing else to do, and gets it whatever its fill.
        """
        if not self._open:
            return None
        fullest = max(range(len(self._open)), key=self._tokens.__getitem__)
        too_many = self._num_waiting > self.most_waiting or sum(self._tokens) > self.most_tokens
        if not (hungry or too_many) and self._tokens[fullest] < self._min_tokens:
            return None
        items = self._open.pop(fullest)
        self._num_waiting -= len(items)
        return Pack(tuple(items), self._tokens.pop(fullest), self._capacity)

    def close(self) -> list[Pack[Item]]:
        """Hand out all that is left, packed anew when that makes fewer packs, fullest first."""
        waiting = [item for items in self._open for item in items]
        anew = [
            [waiting[index] for index in indices]
            for indices in pack_lengths([item.num_tokens for item in waiting], self._capacity)
        ]
        chosen = anew if len(anew) < len(self._open) else self._open
        self._open, self._tokens, self._num_waiting = [], [], 0
        packs = [Pack(tuple(items), sum(item.num_tokens for item in items), self._capacity) for items in chosen]
        return sorted(packs, key=lambda pack: -pack.num_tokens)


def _check_fits(length: int, capacity: int) -> None:
    if length > capacity:
        raise DataError(
            f"an item of {length} tokens does not fit a pack of {capacity}; raise global_max_length or set "
            "custom.on_long_target: skip"
        )


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
        return list(iter(self.take, None))


def packer_of(config: "Config") -> Packer[TrainingSample] | OnePack | NoPacking:
    """What fills the packs of a run."""
    capacity, training = config.global_max_length, config.training
    if not training.packing:
        return NoPacking(capacity, training.packing_buffer)
    if config.fills_one_pack:
        return OnePack(capacity)
    return Packer(capacity, training.packing_min_fill_ratio, training.packing_buffer)

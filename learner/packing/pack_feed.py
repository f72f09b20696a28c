"""Where targets that arrive one by one meet a learner that asks for packs."""

import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from learner.packing.packer import Item, Pack
from shared.streams import task_group

Made = TypeVar("Made")

LINGER_S = 0.002
"""What arrives within so many seconds of each other is learned together, even by an idle learner."""


class GroupPacker(Protocol[Item]):
    """What fills packs: fed one item at a time, asked for a pack whenever the learner could use one.

    No more than `most_waiting` items and `most_tokens` tokens are to wait for a pack, or in one for the learner.
    """

    most_waiting: float
    most_tokens: float

    def add(self, item: Item) -> None: ...
    def take(self, hungry: bool = False) -> Pack[Item] | None: ...
    def close(self) -> list[Pack[Item]]: ...


class PackFeed(Generic[Item]):
    """Packs for a learner that may be busy or idle.

    A task of `packs` fills the packer with what arrives, `packs` drains it, and `asking` tells it when the learner has
    run out; either wakes it. While the learner is busy, the pack that is made ready for it is one filled to
    `packing_min_fill_ratio`. An idle learner gets the fullest there is, however empty: to wait would be to do the same
    work later. When it falls behind, packs are full by themselves, and when more waits than the packer allows, no more
    is asked for until the learner has taken a pack. `in_order` decides by the order of arrival alone.
    """

    def __init__(self, packer: GroupPacker[Item], in_order: bool = False) -> None:
        self._packer = packer
        self._in_order = in_order
        self._num_waiting = self._num_tokens = 0
        self._num_wanted = 0
        """Packs that the learner has asked for, less those made: 1 = it is idle, −1 = one is ready."""
        self._filling = False
        self._changed, self._room = anyio.Event(), anyio.Event()
        self._made: deque[Pack[Item]] = deque()

    async def packs(self, groups: Iterable[AsyncGenerator[Item, None]]) -> AsyncGenerator[Pack[Item], None]:
        """Every item of `groups` in some pack, once, group after group."""
        for items in groups:
            self._filling = True
            async with task_group() as tasks:
                tasks.start_soon(self._fill, items)
                while (pack := await self._next()) is not None:
                    self._num_wanted -= 1
                    self._num_waiting -= len(pack.items)
                    self._num_tokens -= pack.num_tokens
                    self._room.set()
                    yield pack

    async def asking(self, packs: MemoryObjectReceiveStream[Made]) -> AsyncIterator[Made]:
        """Read what `packs` became at the other end of the hand-offs; waiting for the next is asking for it."""
        while True:
            self._num_wanted += 1
            self._changed.set()
            try:
                pack = await packs.receive()
            except anyio.EndOfStream:
                return
            yield pack

    async def _fill(self, items: AsyncGenerator[Item, None]) -> None:
        async with aclosing(items):
            async for item in items:
                self._packer.add(item)
                self._num_waiting += 1
                self._num_tokens += item.num_tokens
                if self._in_order:
                    self._made.extend(iter(self._packer.take, None))
                self._changed.set()
                await self._wait_for_room()
        self._made.extend(self._packer.close())
        self._filling = False
        self._changed.set()

    async def _wait_for_room(self) -> None:
        """Wait while there is too much and a pack of it can be taken; an overfull packer makes one when asked."""
        while self._num_waiting > self._packer.most_waiting or self._num_tokens > self._packer.most_tokens:
            if not self._made:
                if (pack := self._packer.take()) is None:
                    return
                self._made.append(pack)
            self._changed.set()
            self._room = anyio.Event()
            await self._room.wait()

    async def _next(self) -> Pack[Item] | None:
        """The next pack of the group that is being filled, or None when it has no more."""
        while True:
            self._changed = anyio.Event()
            if self._made or not self._filling:
                return self._made.popleft() if self._made else None
            if not self._in_order and (pack := self._packer.take()) is not None:
                return pack
            is_idle = self._num_wanted > 0 and not self._in_order
            with anyio.move_on_after(LINGER_S if is_idle else math.inf):
                await self._changed.wait()
                continue
            if (pack := self._packer.take(hungry=True)) is not None:
                return pack
            await self._changed.wait()

"""Packs for a learner that may be busy or idle: what it gets, and when."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from learner.packing.pack_feed import LINGER_S, PackFeed
from learner.packing.packer import MOST_PACKS_WAITING, NoPacking, OnePack, Packer
from shared.streams import prefetched

LATER_S = 10 * LINGER_S


@dataclass(frozen=True)
class Item:
    name: int
    num_tokens: int = 10


async def arriving(*bursts: int) -> AsyncGenerator[Item, None]:
    """Bursts of items, with a pause after each."""
    names = iter(range(sum(bursts)))
    for size in bursts:
        for _ in range(size):
            yield Item(next(names))
        await anyio.sleep(LATER_S)


async def sizes(feed: PackFeed[Item], *groups: AsyncGenerator[Item, None], learn_s: float = 0.0) -> list[int]:
    """Number of items of each pack that a learner got which takes `learn_s` for one."""
    found: list[int] = []
    with anyio.fail_after(5):
        async with prefetched(feed.packs(groups), depth=1) as packs:
            async for pack in feed.asking(packs):
                found.append(len(pack.items))
                await anyio.sleep(learn_s)
    return found


async def test_an_idle_learner_gets_what_came_together_however_little() -> None:
    assert await sizes(PackFeed(Packer(100, 0.7)), arriving(2, 1, 3)) == [2, 1, 3]


async def test_a_busy_learner_is_made_a_full_pack_ready_and_gets_the_rest_when_it_is_idle() -> None:
    assert await sizes(PackFeed(Packer(100, 0.5)), arriving(1, 5, 1), learn_s=3.5 * LATER_S) == [1, 5, 1]


async def test_full_packs_do_not_wait_for_more() -> None:
    assert await sizes(PackFeed(Packer(100, 1.0)), arriving(10, 10)) == [10, 10]


async def test_no_pack_holds_items_of_two_groups() -> None:
    assert await sizes(PackFeed(Packer(100, 1.0)), arriving(3), arriving(4)) == [3, 4]
    assert await sizes(PackFeed(Packer(100, 1.0)), arriving(), arriving(4)) == [4]


@pytest.mark.parametrize("bursts", [(7,), (1,) * 7, (3, 4)])
async def test_in_order_packs_depend_on_the_order_of_arrival_alone(bursts: tuple[int, ...]) -> None:
    assert await sizes(PackFeed(Packer(100, 0.3), in_order=True), arriving(*bursts)) == [3, 3, 1]


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(
    ("packer", "most"),
    [
        (Packer(100, 0.5, buffer=4), 4),
        (Packer(100, 1.0, buffer=4), 4),
        (Packer(20, 1.0), 2 * MOST_PACKS_WAITING),
        (NoPacking(100, buffer=4), 4),
    ],
)
async def test_while_the_learner_is_busy_no_more_is_asked_for_than_may_wait(
    packer: Any, most: int, in_order: bool
) -> None:
    num_arrived = num_learned = 0

    async def items() -> AsyncGenerator[Item, None]:
        nonlocal num_arrived
        for name in range(60):
            num_arrived += 1
            yield Item(name)

    feed, names = PackFeed[Item](packer, in_order), []
    with anyio.fail_after(10):
        async with prefetched(feed.packs([items(), items()]), depth=1) as packs:
            async for pack in feed.asking(packs):
                num_learned += len(pack.items)
                names += [item.name for item in pack.items]
                await anyio.sleep(LINGER_S)
                in_hand = 10  # the pack that is made ready is beyond the buffer
                assert num_arrived <= num_learned + most + in_hand + 1
    assert sorted(names) == sorted([*range(60), *range(60)])


async def test_a_packer_that_makes_one_pack_of_a_group_is_given_all_of_it() -> None:
    assert await sizes(PackFeed(OnePack(10**6)), arriving(300), arriving(2)) == [300, 2]  # type: ignore[arg-type]


async def test_an_error_of_what_arrives_ends_the_packs() -> None:
    async def failing() -> AsyncGenerator[Item, None]:
        yield Item(0)
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        await sizes(PackFeed(Packer(100, 0.7)), failing())


async def test_a_learner_that_fails_closes_what_arrives() -> None:
    closed = []

    async def endless() -> AsyncGenerator[Item, None]:
        try:
            yield Item(0)
            await anyio.sleep_forever()
        finally:
            closed.append(True)

    async def learn() -> None:
        feed = PackFeed[Item](Packer(100, 0.7))
        async with prefetched(feed.packs([endless()]), depth=1) as packs:
            async for _ in feed.asking(packs):
                raise ZeroDivisionError

    with anyio.fail_after(5), pytest.raises(ZeroDivisionError):
        await learn()
    assert closed == [True]

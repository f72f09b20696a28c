"""Packing loses nothing, never exceeds the capacity, and wastes little."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.packing.packer import Pack, Packer, pack_lengths
from shared.errors import DataError


@dataclass(frozen=True)
class Item:
    name: int
    num_tokens: int


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 150))
def test_every_index_is_packed_once_within_the_capacity(lengths: list[int], capacity: int) -> None:
    packs = pack_lengths(lengths, capacity)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in pack) <= capacity for pack in packs)
    assert len(packs) <= 2 * -(-sum(lengths) // capacity)  # no two packs would fit into one


def test_lengths_like_those_of_answers_fill_packs_almost_whole() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(300, 1300) + int(rng.lognormvariate(5, 1)) % 3000 for _ in range(2000)]
    assert len(pack_lengths(lengths, 12_000)) <= -(-sum(lengths) // 12_000) / 0.98


@given(
    st.lists(st.integers(1, 100), max_size=60),
    st.floats(0.1, 1.0),
    st.integers(1, 20),
    st.lists(st.sampled_from(["hungry", "busy", "away"]), min_size=60, max_size=60),
)
def test_streaming_loses_nothing(lengths: list[int], min_fill: float, buffer: int, learner: list[str]) -> None:
    packer: Packer[Item] = Packer(100, min_fill, buffer)
    packs: list[Pack[Item]] = []
    for item, state in zip((Item(*each) for each in enumerate(lengths)), learner, strict=False):
        packer.add(item)
        while state != "away" and (pack := packer.take(hungry=state == "hungry")):
            assert pack.fill >= min_fill or state == "hungry" or item.name + 1 > buffer
            packs.append(pack)
    packs += packer.close()
    assert sorted(item.name for pack in packs for item in pack.items) == list(range(len(lengths)))
    for pack in packs:
        assert pack.num_tokens == sum(item.num_tokens for item in pack.items) <= pack.capacity == 100
        assert pack.fill == pack.num_tokens / 100
    assert packer.close() == []


def test_an_item_goes_where_it_fills_best() -> None:
    packer: Packer[Item] = Packer(100, 0.95)
    for name, length in enumerate((50, 60, 40)):
        packer.add(Item(name, length))
    pack = packer.take()
    assert pack is not None
    assert [item.name for item in pack.items] == [1, 2]
    assert packer.take() is None


def test_an_idle_learner_gets_the_fullest_pack_whatever_its_fill() -> None:
    packer: Packer[Item] = Packer(100, 0.5)
    assert packer.take(hungry=True) is None
    packer.add(Item(0, 10))
    assert packer.take() is None
    assert packer.take(hungry=True) == Pack((Item(0, 10),), 10, 100)


def test_more_than_the_buffer_leaves_even_under_the_least_fill() -> None:
    packer: Packer[Item] = Packer(100, 0.9, buffer=2)
    for name in range(3):
        packer.add(Item(name, 5))
    assert packer.take() == Pack((Item(0, 5), Item(1, 5), Item(2, 5)), 15, 100)


def test_closing_packs_anew_where_that_saves_a_pack() -> None:
    packer: Packer[Item] = Packer(100, 1.0)
    for name, length in enumerate((40, 30, 70, 60)):
        packer.add(Item(name, length))
    assert [pack.num_tokens for pack in packer.close()] == [100, 100]


def test_what_does_not_fit_is_an_error_with_both_numbers() -> None:
    with pytest.raises(DataError, match="101 tokens does not fit a pack of 100"):
        pack_lengths([5, 101], 100)
    with pytest.raises(DataError, match="101 tokens does not fit a pack of 100"):
        Packer[Item](100, 0.7).add(Item(0, 101))


def test_the_same_calls_give_the_same_packs() -> None:
    rng = random.Random(1)
    lengths = [rng.randint(1, 60) for _ in range(100)]

    def packs() -> list[Pack[Item]]:
        packer: Packer[Item] = Packer(100, 0.7)
        taken = []
        for name, length in enumerate(lengths):
            packer.add(Item(name, length))
            taken += iter(packer.take, None)
        return taken + packer.close()

    assert packs() == packs()

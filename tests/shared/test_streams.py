from collections.abc import AsyncGenerator

import anyio
import pytest

from shared.streams import prefetched, ready_now, task_group


class Counting:
    """A source that notes how far it has got and whether it was closed."""

    def __init__(self, stop: int) -> None:
        self.produced = 0
        self.closed = False
        self.items = self._items(stop)

    async def _items(self, stop: int) -> AsyncGenerator[int, None]:
        try:
            for item in range(stop):
                self.produced += 1
                yield item
                await anyio.lowlevel.checkpoint()
        finally:
            self.closed = True


@pytest.mark.parametrize("depth", [1, 3])
async def test_a_source_runs_ahead_of_its_reader_by_the_depth_and_no_further(depth: int) -> None:
    source = Counting(20)
    async with prefetched(source.items, depth=depth) as items:
        taken = []
        async for item in items:
            taken.append(item)
            await anyio.sleep(0.002)
            assert source.produced <= min(20, len(taken) + depth)
    assert taken == list(range(20))
    assert source.closed


async def test_a_source_works_while_its_reader_is_busy() -> None:
    source = Counting(5)
    async with prefetched(source.items, depth=4) as items:
        assert await anext(items) == 0
        await anyio.sleep(0.01)
        assert source.produced == 5
        assert ready_now(items) == [1, 2, 3, 4]


async def test_leaving_early_closes_the_source() -> None:
    source = Counting(100)
    async with prefetched(source.items, depth=2) as items:
        await anext(items)
    assert source.closed
    assert source.produced < 100


async def test_an_error_of_the_source_reaches_the_reader_as_itself() -> None:
    async def failing() -> AsyncGenerator[int, None]:
        yield 1
        raise ZeroDivisionError("bad record")

    async def read() -> None:
        async with prefetched(failing(), depth=1) as items:
            async for _ in items:
                pass

    with pytest.raises(ZeroDivisionError, match="bad record"):
        await read()


async def test_an_error_of_the_reader_closes_the_source_and_is_raised_as_itself() -> None:
    source = Counting(100)

    async def read() -> None:
        async with prefetched(source.items, depth=2) as items:
            await anext(items)
            raise KeyError("reader")

    with pytest.raises(KeyError, match="reader"):
        await read()
    assert source.closed


async def test_a_depth_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        async with prefetched(Counting(1).items, depth=0):
            pass


async def test_a_task_groups_only_error_is_raised_as_itself_and_several_stay_a_group() -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def fail_all(*errors: Exception) -> None:
        async with task_group() as tasks:
            for error in errors:
                tasks.start_soon(fail, error)

    with pytest.raises(ValueError, match="one"):
        await fail_all(ValueError("one"))
    with pytest.raises(ExceptionGroup) as caught:
        await fail_all(ValueError("one"), KeyError("two"))
    assert len(caught.value.exceptions) == 2

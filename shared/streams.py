"""Bounded hand-offs between tasks of one event loop."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from shared.errors import BoxloopError

T = TypeVar("T")


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """A task group whose error is raised as itself, so that callers catch it by its type.

    Of several tasks that failed with errors of ours at once, the first is raised and bears the others as notes.
    """
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        # A generator that is closed while a task of it fails is not what went wrong.
        errors = list(_leaves(group))
        first, *others = [error for error in errors if not isinstance(error, GeneratorExit)] or errors[:1]
        if not all(isinstance(error, BoxloopError) for error in others):
            raise
        for other in others:
            first.add_note(str(other))
        raise first from first.__cause__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


@asynccontextmanager
async def prefetched(source: AsyncGenerator[T, None], depth: int) -> AsyncIterator[MemoryObjectReceiveStream[T]]:
    """Run `source` in a task of its own, at most `depth` items ahead of the reader.

    Filled by that task, drained by the body of the `async with`. A full hand-off stops the task until the body takes
    an item; an empty one stops the body until the task delivers, ends or fails. An error of `source` ends the body and
    is raised from the `async with`; leaving the body early closes `source`. Raises ValueError for a depth under 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be ≥ 1, got {depth}")
    # The item that the task holds while it waits for the reader is one of the `depth`.
    sender, receiver = anyio.create_memory_object_stream[T](max_buffer_size=depth - 1)
    # The receiver outlives the task, which ends by a cancellation and never by a broken stream.
    with receiver:
        async with task_group() as tasks:
            tasks.start_soon(_pump, source, sender)
            yield receiver
            tasks.cancel_scope.cancel()


async def _pump(source: AsyncGenerator[T, None], sender: MemoryObjectSendStream[T]) -> None:
    async with sender, aclosing(source) as items:
        async for item in items:
            await sender.send(item)


def ready_now(stream: MemoryObjectReceiveStream[T]) -> list[T]:
    """Everything that can be read from `stream` without waiting."""
    items: list[T] = []
    while True:
        try:
            items.append(stream.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            return items

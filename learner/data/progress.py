"""Progress of long work on standard error: a bar on a terminal, else a line every now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

TELL_EVERY_S = 10.0


@contextmanager
def progress_bar(work: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """What is to be told how much of `total` is done; None = nobody knows how much there is."""
    console, told = Console(stderr=True), time.monotonic()
    count = DownloadColumn() if in_bytes else MofNCompleteColumn()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(work, total=total)

        def show(done: int) -> None:
            nonlocal told
            bar.update(task, completed=done)
            if bar.disable and time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                print(f"{work}: {done if total is None else f'{done / max(1, total):.0%}'}", file=sys.stderr)

        yield show


def with_progress(work: str, items: Iterable[T], total: int | None) -> Iterator[T]:
    """The same items; how many were taken is shown."""
    with progress_bar(work, total) as show:
        for done, item in enumerate(items, 1):
            yield item
            show(done)

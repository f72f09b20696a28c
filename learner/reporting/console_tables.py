"""Tables that fit the console that they are printed on."""

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDEST = 1000
"""Characters of a line where no terminal bounds it."""
NARROWEST_TEXT = 12
"""A column of texts is folded to no less, as long as there are columns of numbers to leave out."""


def print_rows(rows: Sequence[Mapping[str, str]], console: Console, *, title: str, caption: str | None = None) -> None:
    """Print rows of one set of keys: a column of texts, which are folded, then numbers.

    On a narrow terminal the last columns are left out, and named below.
    """
    headings = list(rows[0]) if rows else []
    while len(headings) > 1 and console.is_terminal and _narrowest(headings, rows) > console.width:
        headings.pop()
    left_out = [heading for heading in (rows[0] if rows else ()) if heading not in headings]
    told = [caption] if caption else []
    told += [f"too narrow for: {', '.join(left_out)}"] if left_out else []
    table = Table(title=title, caption="; ".join(told) or None)
    for heading in headings:
        is_text = heading == headings[0]
        table.add_column(_broken(heading), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[heading]) for heading in headings))  # a text may hold what would be markup
    print_whole(table, console)


def print_whole(table: Table, console: Console) -> None:
    """Print a table; where no terminal says how wide a line may be, it is as wide as it needs to be."""
    if console.is_terminal:
        console.print(table)
        return
    wide = console.options.update(width=WIDEST)
    before = console.width
    console.width = max(before, console.measure(table, options=wide).maximum)
    console.print(table)
    console.width = before


def _narrowest(headings: Sequence[str], rows: Sequence[Mapping[str, str]]) -> int:
    """Characters that these columns take with the texts folded."""
    widths = [max(_longest(_broken(heading)), *(cell_len(row[heading]) for row in rows)) for heading in headings]
    return min(widths[0], NARROWEST_TEXT) + sum(widths[1:]) + 3 * len(widths) + 1


def _broken(heading: str) -> str:
    """A heading with each word on a line of its own."""
    return heading.replace(" ", "\n")


def _longest(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)

"""Tables on consoles of any width."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from learner.reporting.console_tables import print_rows

LONG = "a desc that is rather long, as people write them, with 猫 and [b]markup[/c] in it"
ROWS = [
    {"desc": LONG, "objects": "1234", "mean score": "0.987", "surest of all": "0.999"},
    {"desc": "cat", "objects": "7", "mean score": "0.5", "surest of all": "1"},
]


def printed(width: int, *, terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    print_rows(ROWS, console, title="Found", caption="2 descs")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", range(24, 140, 7))
def test_no_line_is_wider_than_the_terminal_and_no_text_is_cut(width: int) -> None:
    text = printed(width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    told = "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))
    assert LONG.replace(" ", "") in told.replace(" ", "")
    for heading, number in (("objects", "1234"), ("mean score", "0.987"), ("surest of all", "0.999")):
        assert (number in text) != (heading in " ".join(text.split()).partition("too narrow for:")[2]), heading


def test_what_does_not_fit_is_named() -> None:
    assert "too narrow for" not in printed(100)
    narrow = " ".join(printed(34).split())
    assert "2 descs; too narrow for: surest of all" in narrow
    assert "0.987" in narrow


def test_where_there_is_no_terminal_nothing_is_folded() -> None:
    text = printed(20, terminal=False)
    assert f" {LONG} " in text
    assert "0.999" in text

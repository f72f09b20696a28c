"""How a program of ours talks to a terminal, a file or a pipe, whatever these can take."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

READER_LEFT = 128 + signal.SIGPIPE
"""Exit code of a program whose reader left, such as `head`; as a shell says it of any other program."""


def settle_streams() -> None:
    """Let a console that has no letter for a character be shown its escape, and the program go on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_main(main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run a program to its exit code. A reader that leaves ends it quietly."""
    settle_streams()
    try:
        code = main(None)
        sys.stdout.flush()
    except BrokenPipeError:
        leave_quietly()
    sys.exit(code)


def leave_quietly() -> NoReturn:
    """End a program whose reader has left; what is still to be flushed goes nowhere."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(READER_LEFT)

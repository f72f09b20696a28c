"""One supervised child process: started in a group of its own, logged, and ended with everything it started."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shared.lifeline import LIFELINE_VARIABLE


@dataclass(frozen=True)
class ProcessSpec:
    """What is started: `name` is for people, `argv` and `environment` are whole, output goes to `log`.

    `on_console` shows the output live too. On a terminal the child then gets the terminal itself as its standard
    output, because a progress display needs one, and only its standard error is kept in the log.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    on_console: bool = False
    inherits: tuple[int, ...] = ()
    """open descriptors that the child keeps"""


class ChildProcess:
    """A running child. It leads a session and a process group; signals go to the whole group and nowhere else."""

    def __init__(self, spec: ProcessSpec) -> None:
        """Start it. Raises OSError when the program or the log cannot be opened."""
        self.spec = spec
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        read_end, self._lifeline = os.pipe()
        terminal = spec.on_console and sys.stdout.isatty()
        try:
            with spec.log.open("ab", buffering=0) as log:
                captured = subprocess.PIPE if spec.on_console else log
                self._process = subprocess.Popen(
                    spec.argv,
                    env={**spec.environment, LIFELINE_VARIABLE: str(read_end)},
                    stdin=subprocess.DEVNULL,
                    stdout=None if terminal else captured,
                    stderr=captured if terminal or not spec.on_console else subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(read_end, *spec.inherits),
                )
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            os.close(read_end)
        self._tee = self._start_tee()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def stop(self, grace_s: float) -> int:
        """End the whole group: SIGTERM, up to `grace_s` seconds for the child, then SIGKILL. Returns the exit code.

        Once it has been stopped, its number may be another's: a second call does nothing.
        """
        if self._lifeline < 0:
            return self._process.wait()
        if self._process.poll() is None:
            self._signal_group(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        self._signal_group(signal.SIGKILL)  # for a child that did not hear, and for what one left behind
        code = self._process.wait()
        if self._tee is not None:
            self._tee.join(timeout=2.0)
        os.close(self._lifeline)
        self._lifeline = -1
        return code

    def log_tail(self, num_lines: int = 12) -> str:
        """The last lines of the log, for an error message."""
        text = self.spec.log.read_bytes()[-20_000:].decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-num_lines:])

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # the group is empty; macOS says the latter of a dying one
            os.killpg(self._process.pid, number)

    def _start_tee(self) -> threading.Thread | None:
        source = self._process.stdout or self._process.stderr
        if source is None:
            return None
        thread = threading.Thread(target=_copy, args=(source, self.spec.log), name=f"tee {self.spec.name}", daemon=True)
        thread.start()
        return thread


class _Tee:
    """Writes what a child says into several files. The child must never wait for one of them for good.

    So a file that takes no more (a full disk, a pipe whose reader has left) is left out from then on, which the others
    are told.
    """

    def __init__(self, files: Mapping[str, int]) -> None:
        """`files` are open descriptors by the names that people know them by."""
        self._files = dict(files)

    def write(self, data: bytes) -> None:
        for name, descriptor in tuple(self._files.items()):
            try:
                _write_whole(descriptor, data)
            except OSError as error:
                # Telling the others may already have found this one broken, or find them so.
                if self._files.pop(name, None) is not None:
                    self.write(f"\n{name} takes no more: {error.strerror}. The run goes on without it\n".encode())


def _write_whole(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _copy(source: IO[bytes], log: Path) -> None:
    console = sys.stderr if sys.stdout.isatty() else sys.stdout
    with log.open("ab", buffering=0) as file:
        tee = _Tee({str(log): file.fileno(), "the console": console.fileno()})
        while chunk := os.read(source.fileno(), 65536):
            tee.write(chunk)

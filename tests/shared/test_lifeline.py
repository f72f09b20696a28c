"""The lifeline alone; tests/compose/test_supervisor.py has it in a whole run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from shared.lifeline import LIFELINE_VARIABLE, end_with_parent

ROOT = Path(__file__).parents[2]
DEAF_CHILD = """
import os, signal, subprocess, sys, time
from shared.lifeline import end_with_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)
assert end_with_parent(grace_s=0.2)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print(grandchild.pid, flush=True)
time.sleep(300)
"""


def test_without_a_supervisor_nothing_is_watched() -> None:
    assert LIFELINE_VARIABLE not in os.environ
    assert end_with_parent() is False


def test_a_closed_lifeline_ends_a_deaf_child_and_its_grandchild() -> None:
    read_end, write_end = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", DEAF_CHILD],
        env={**os.environ, LIFELINE_VARIABLE: str(read_end), "PYTHONPATH": str(ROOT)},
        pass_fds=(read_end,),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    os.close(read_end)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    assert child.poll() is None
    os.close(write_end)
    assert child.wait(timeout=10) == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while _is_running(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.stdout.close()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False

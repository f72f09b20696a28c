"""A child whose output goes to a log and to the console, when one of the two takes no more."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

NUM_LINES = 20_000
"""Some 300 kB: several times what a pipe holds, so that a child nobody listens to stands still."""

PARENT = """
import os, sys
from pathlib import Path
from compose.process import ProcessSpec
from compose.supervisor import run_program
log, num_lines = sys.argv[1:]
child = f"for number in range({num_lines}): print('line', number, flush=number < 3)\\nraise SystemExit(7)"
spec = ProcessSpec("child", (sys.executable, "-c", child), os.environ, Path(log), on_console=True)
sys.exit(0 if run_program(spec) == 1 else 9)
"""


SAID = "".join(f"line {number}\n" for number in range(NUM_LINES))


def start(log: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PARENT, str(log), str(NUM_LINES)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_takes_no_log_but_the_console_goes_on_and_says_so(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.symlink_to("/dev/full")
    process = start(log)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert told.replace(f"\n{log} takes no more: No space left on device. The run goes on without it\n", "", 1) == SAID
    assert "Traceback" not in errors


def test_a_console_whose_reader_leaves_does_not_hold_up_the_child_nor_its_log(tmp_path: Path) -> None:
    """As in `boxloop up … | head -1`."""
    log = tmp_path / "child.log"
    process = start(log)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.wait(120) == 0
    notice = "\nthe console takes no more: Broken pipe. The run goes on without it\n"
    assert log.read_text().replace(notice, "", 1) == SAID
    errors = process.stderr.read()
    assert "Traceback" not in errors
    assert "Broken pipe" not in errors


def test_without_either_the_child_still_comes_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.symlink_to("/dev/full")
    process = start(log)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

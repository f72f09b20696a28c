"""Weights in a folder whose learner was killed, and those of one that lives."""

import subprocess
import sys
from pathlib import Path

from learner.weight_sync.folder_lock import lock_folder

LEARNER = """
import sys, time
from pathlib import Path
from learner.weight_sync.folder_lock import lock_folder
root, name = Path(sys.argv[1]), sys.argv[2]
with lock_folder(root, name):
    (root / f"{name}-1-full").mkdir()
    print("held", flush=True)
    time.sleep(60)
"""


def learner(root: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LEARNER, str(root), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_what_a_killed_learner_left_is_removed_and_what_a_living_one_keeps_is_not(tmp_path: Path) -> None:
    (tmp_path / "a-user's").mkdir()
    killed, living = learner(tmp_path, "killed"), learner(tmp_path, "living")
    try:
        killed.kill()
        killed.wait()
        with lock_folder(tmp_path, "next"):
            left = {path.name for path in tmp_path.iterdir()}
            assert left == {"a-user's", "living-1-full", "living.lock", "next.lock"}
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()
    assert not (tmp_path / "next.lock").exists()

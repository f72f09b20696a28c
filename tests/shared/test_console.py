"""Programs of ours go on whatever takes what they print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

CHECK = (sys.executable, "-m", "learner.data.check")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48)).save(tmp_path / "ü.png")
    path = tmp_path / "train.jsonl"
    dog = '{"desc": "Hündin 狗", "bbox_2d": [1, 1, 9, 9]}'
    line = f'{{"images": ["ü.png"], "width": 64, "height": 48, "objects": [{dog}]}}\n'
    path.write_text(line * 3 + '{"images": ["狗.png"], "width": 64, "height": 48, "objects": []}\n' * 3000, "utf-8")
    return path


@pytest.mark.slow
@pytest.mark.reported("PYTHONIOENCODING=ascii")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_console_without_these_letters_gets_their_escapes(file: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([*CHECK, str(file)], capture_output=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"\\u72d7" in done.stdout


@pytest.mark.slow
@pytest.mark.reported("data check | head -1")
@pytest.mark.parametrize("command", [CHECK, (sys.executable, "-m", "compose", "data", "check")])
def test_a_reader_that_leaves_ends_it_quietly(file: Path, command: tuple[str, ...]) -> None:
    program = subprocess.Popen([*command, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.readline()
    program.stdout.close()
    told = program.stderr.read().decode()
    program.stderr.close()
    assert program.wait() in (0, 1, 141)
    assert "Traceback" not in told
    assert "None" not in told

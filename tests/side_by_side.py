"""The whole suite in two runs of pytest side by side: `python -m tests.side_by_side [options of pytest]`.

Runs of a learner with its server wait for each other most of the time, so one of two cores idles. The run on the left
is printed as it goes, the other one's output when it has ended. The exit code is the first that is not 0. Paths among
the options are for one run alone, without the other.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

WHOLE_RUNS = ("tests/end_to_end", "tests/contract")
"""About half of the time."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments]


def main(options: Sequence[str]) -> int:
    """Run both and return the exit code."""
    if any(Path(option.partition("::")[0]).exists() for option in options):
        return subprocess.run(command(*options), check=False).returncode
    rest = [f"--ignore={path}" for path in WHOLE_RUNS]
    with tempfile.TemporaryFile("w+") as kept:
        beside = subprocess.Popen(command("-q", *WHOLE_RUNS, *options), stdout=kept, stderr=subprocess.STDOUT)
        try:
            codes = [subprocess.run(command("-q", *rest, *options), check=False).returncode, beside.wait()]
        finally:
            beside.kill()
        kept.seek(0)
        print(kept.read(), flush=True)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

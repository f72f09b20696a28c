"""A scripted run whose learner stops itself: `python -m tests.end_to_end.stopped_run STOPS SCRIPT config=FILE …`.

At that exact moment a test can do something to a server; SIGCONT lets the learner go on.
"""

import os
import sys

from benchmarks.scripted_run import run_scripted
from compose.launch_plan import Work
from tests.end_to_end.stopped_learner import STOPS

if __name__ == "__main__":
    stops, script, *arguments = sys.argv[1:]
    os.environ[STOPS] = stops
    sys.exit(run_scripted(script, arguments, Work(module="tests.end_to_end.stopped_learner")))

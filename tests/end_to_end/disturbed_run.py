"""A run that a test disturbs: `python -m tests.end_to_end.disturbed_run ENGINE SCRIPT STOPS config=FILE …`.

Servers of ENGINE have the delays and faults of SCRIPT. STOPS, unless it is empty, are moments at which the learner
stops itself: a test can then do something to a server, and SIGCONT lets the learner go on.
"""

import os
import sys

from benchmarks.scripted_run import run_closely_watched, scripted
from compose.launch_plan import ServerProgram, Work
from tests.end_to_end.stopped_learner import STOPS


def program_of(engine: str, script: str) -> ServerProgram:
    """What servers of that engine are."""
    if engine == "scripted":
        return scripted(script)
    return ServerProgram("tests.end_to_end.disturbed_server", ("--script", script))


if __name__ == "__main__":
    engine, script, stops, *arguments = sys.argv[1:]
    os.environ[STOPS] = stops
    work = Work(module="tests.end_to_end.stopped_learner") if stops else Work()
    sys.exit(run_closely_watched(program_of(engine, script), arguments, work))

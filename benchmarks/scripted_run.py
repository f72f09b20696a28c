"""`boxloop up` with servers that play a script: `python -m benchmarks.scripted_run SCRIPT config=FILE [key=value …]`.

For fault tests and soaking: everything is real but the model behind the servers.
"""

import sys
from collections.abc import Sequence

from compose import watch
from compose.arguments import parse_launch
from compose.launch_plan import ServerProgram, Work
from compose.supervisor import run_supervised


def scripted(script: str) -> ServerProgram:
    """Servers that play the script in this file."""
    return ServerProgram(arguments=("--engine", "scripted", "--script", script))


def run_closely_watched(program: ServerProgram, arguments: Sequence[str], work: Work = Work()) -> int:
    """The exit code of `boxloop up ARGUMENTS…`; a server that fails is noticed, ended and started again sooner."""
    watch.PROBE_INTERVAL_S, watch.KILL_GRACE_S = 0.25, 0.5
    watch.FIRST_PAUSE_S, watch.LONGEST_PAUSE_S = 0.2, 1.0
    return run_supervised(parse_launch(arguments), work, program=program)


if __name__ == "__main__":
    sys.exit(run_closely_watched(scripted(sys.argv[1]), sys.argv[2:]))

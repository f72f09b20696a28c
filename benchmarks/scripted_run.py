"""`boxloop up` with servers that play a script: `python -m benchmarks.scripted_run SCRIPT config=FILE [key=value …]`.

For fault tests and soaking: everything is real but the model behind the servers.
"""

import sys
from collections.abc import Sequence

from compose import watch
from compose.cli import parse_launch
from compose.launch_plan import ServerProgram, Work
from compose.supervisor import run_supervised


def run_scripted(script: str, arguments: Sequence[str], work: Work = Work()) -> int:
    """The exit code of `boxloop up ARGUMENTS…`; a server that went down is started again sooner than in earnest."""
    watch.FIRST_PAUSE_S, watch.LONGEST_PAUSE_S = 0.2, 1.0
    program = ServerProgram(arguments=("--engine", "scripted", "--script", script))
    return run_supervised(parse_launch(arguments), work, program=program)


if __name__ == "__main__":
    sys.exit(run_scripted(sys.argv[1], sys.argv[2:]))

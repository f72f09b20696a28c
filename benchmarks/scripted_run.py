"""`boxloop up` with servers that play a script: `python -m benchmarks.scripted_run SCRIPT config=FILE [key=value …]`.

For fault tests and soaking: everything is real but the model behind the servers.
"""

import sys

from compose import watch
from compose.cli import parse_launch
from compose.launch_plan import ServerProgram
from compose.supervisor import run_supervised

if __name__ == "__main__":
    script, *arguments = sys.argv[1:]
    watch.FIRST_PAUSE_S, watch.LONGEST_PAUSE_S = 0.2, 1.0  # faults come thick and fast here
    program = ServerProgram(arguments=("--engine", "scripted", "--script", script))
    sys.exit(run_supervised(parse_launch(arguments), program=program))

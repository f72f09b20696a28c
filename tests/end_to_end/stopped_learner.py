"""The learner of tests/end_to_end/disturbed_run.py: stops itself in a phase, and goes on when it is told to."""

if __name__ == "__main__":
    from shared.companions import tolerate_cuda_builds

    tolerate_cuda_builds()  # before anything imports transformers

import os
import signal
import sys

from learner.__main__ import main
from tests.end_to_end.phases import signal_in

STOPS = "BOXLOOP_TEST_STOPS"
"""Environment variable: `phase:times`, several with commas between them."""

if __name__ == "__main__":
    for stop in os.environ[STOPS].split(","):
        phase, times = stop.split(":")
        signal_in(phase, int(times), signal.SIGSTOP)
    sys.exit(main(sys.argv[1:]))

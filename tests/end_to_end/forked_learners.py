"""Learners that are killed in a phase, one after another: `python -m tests.end_to_end.forked_learners LOG`.

A line of standard input is `[phase, times, arguments]`: a learner with those arguments that is killed when it reaches
the phase for the times-th time. Its exit code comes back as a line, negative when a signal ended it; what it says goes
to LOG. All are forked from one process, because to import takes longer than the few steps that are of interest.
"""

if __name__ == "__main__":
    from shared.companions import tolerate_cuda_builds

    tolerate_cuda_builds()  # before anything imports transformers

import json
import os
import signal
import sys

import learner.build
import learner.train  # noqa: F401 - what __main__ imports late
from learner.__main__ import main
from tests.end_to_end.phases import signal_in


def forked(phase: str, times: int, arguments: list[str], log: int) -> int:
    """The exit code of one learner."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(log, 1)
    os.dup2(log, 2)
    if phase:
        signal_in(phase, times, signal.SIGKILL)
    code = main(arguments)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for line in sys.stdin:
        print(forked(*json.loads(line), log), flush=True)

"""The learner, killed by itself in the middle of a phase: `python killed_learner.py PHASE TIMES ARGUMENTS…`.

Everything is the real learner; what is replaced is only who pulls the trigger, so that the moment is exact. SIGKILL
comes in the midst of the phase, the TIMES-th time that it is reached.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import learner.checkpoint
import learner.rollouts.remote
from learner.__main__ import main
from learner.learn import Learner
from learner.weight_sync.client import WeightChannel

PHASES = {
    "compute": (Learner, "accumulate"),
    "update": (Learner, "update"),
    "decode": (learner.rollouts.remote, "checked_rollout"),
    "publish": (WeightChannel, "commit"),  # prepared and delivered, not loaded
    "save": (learner.checkpoint, "save_file"),  # the weights are written, the optimizer is not
}


def killing(real: Callable[..., Any], times: int) -> Callable[..., Any]:
    left = times

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return call


if __name__ == "__main__":
    phase, times, *arguments = sys.argv[1:]
    if phase in PHASES:
        place, name = PHASES[phase]
        setattr(place, name, killing(getattr(place, name), int(times)))
    sys.exit(main(arguments))

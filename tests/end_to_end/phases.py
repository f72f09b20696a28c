"""A signal in the midst of a learner's phase, at an exact moment: everything is real but who pulls the trigger."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learner.checkpoints.checkpoint
import learner.evaluation.answers
import learner.servers.rollouts
from learner.channels.last_pass import SinglePass
from learner.checkpoints.checkpoint import Checkpoints
from learner.data.encoding import Encoder
from learner.servers.weights import WeightChannel
from learner.training.learner import Learner
from learner.weight_sync.file import FileOffer
from shared.digest import RunningDigest


@dataclass(frozen=True)
class Phase:
    """A learner is in it when the function `name` of `place` is called, with arguments that `fit`."""

    place: Any
    name: str
    fit: Callable[..., bool] = lambda *_, **__: True


PHASES = {
    "encode": Phase(Encoder, "encode_now"),
    "snapshot": Phase(RunningDigest, "hexdigest"),  # the weights are in the file, nobody knows of it
    "prepare": Phase(FileOffer, "deliver"),  # servers know of it
    "publish": Phase(WeightChannel, "commit"),  # delivered, not loaded
    "decode": Phase(learner.servers.rollouts, "checked_rollout"),  # a line came in
    "compute": Phase(Learner, "accumulate"),
    "compute_b": Phase(SinglePass, "__call__"),
    "update": Phase(Learner, "update"),
    "evaluation": Phase(learner.evaluation.answers, "parse_rollout"),
    "ledger": Phase(Checkpoints, "save"),  # the step is in the ledger, and in no checkpoint
    "save": Phase(learner.checkpoints.checkpoint, "save_file"),  # the weights are written, the optimizer is not
    "rename": Phase(Path, "rename", lambda path, *_: path.name.endswith(".partial")),  # the whole checkpoint is written
}


def signal_in(phase: str, times: int, number: signal.Signals) -> None:
    """Send this process a signal when it reaches the phase for the `times`-th time."""
    where, left = PHASES[phase], times
    real = getattr(where.place, where.name)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= where.fit(*args, **kwargs)
        if left == 0:
            left = -1  # once
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    setattr(where.place, where.name, call)

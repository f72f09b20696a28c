"""Trains: `python -m learner --config FILE [key=value …]`; scores with `--evaluate`, or `--calibrate METRIC`s, once."""

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console

from learner.plan.progress import Progress
from learner.run import Run
from shared.companions import tolerate_cuda_builds
from shared.config.advice import advice_for
from shared.config.load import load_config, save_resolved
from shared.config.models import Config
from shared.config.overrides import EVALUATION
from shared.config.paths import user_path
from shared.console import settle_streams
from shared.errors import BoxloopError
from shared.lifeline import end_with_parent
from shared.run_folder import lock_run

STEP_GRACE_S = 20.0
"""How long the running step may take to end after a signal; then it is given up."""
ORPHAN_GRACE_S = 5.0
"""The same when the supervisor is gone, and the servers with it."""


@dataclass(frozen=True)
class Once:
    """What is done instead of training, and the folder in the run's own that it writes into."""

    folder: str
    work: Callable[[Run, Config, Path, Console], Awaitable[None]]


def main(arguments: Sequence[str]) -> int:
    """Run to the end and return the exit code (see docs/running.md)."""
    is_alone = not end_with_parent(grace_s=ORPHAN_GRACE_S)
    settle_streams()
    tolerate_cuda_builds()
    options = parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    once = once_of(options)
    try:
        config = load_config(options.config, (*options.overrides, *(EVALUATION if once else ())))
        if once:
            return asyncio.run(until_signalled(config, console, once))
        for warning in advice_for(config) if is_alone else ():  # a supervisor has told them
            console.print(f"warning: {warning}", style="yellow", markup=False)
        with lock_run(config.training.output_dir):
            resolved = config.training.output_dir / "config.resolved.yaml"
            if resolved.resolve() != options.config.resolve():
                save_resolved(config, resolved)
            return asyncio.run(until_signalled(config, console))
    except (BoxloopError, OSError) as error:  # OSError: a disk that is full or gone
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return error.exit_code if isinstance(error, BoxloopError) else BoxloopError.exit_code


async def until_signalled(config: Config, console: Console, once: Once | None = None) -> int:
    """Train (or do something once) until it is done, or until SIGINT or SIGTERM ends it; no half step is applied.

    A training ends with the running step and a checkpoint. When that step takes longer than STEP_GRACE_S it is given
    up, and the checkpoint is of the step before. A second signal ends all at once.
    """
    # torch takes seconds to import: a bad config is told before. A fifth of them went into looking for garbage among
    # what stays anyway; frozen, it is not looked through while training either.
    gc.disable()
    from learner.build import open_run

    gc.freeze()
    gc.enable()

    folder = config.training.output_dir / once.folder if once else config.training.output_dir

    training: Progress | None = None
    steps = anyio.CancelScope()

    async def work() -> None:
        nonlocal training
        async with open_run(config, console, folder) as run:
            if once:
                await once.work(run, config, folder, console)
                return
            training = run.progress
            with steps:
                await train_what_is_left(run, console)
            if steps.cancelled_caught:
                await run.save_last_whole_step()

    task, loop = asyncio.ensure_future(work()), asyncio.get_running_loop()
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        if training is None or len(received) > 1:
            task.cancel()
            return
        training.stop_requested = True
        loop.call_later(STEP_GRACE_S, steps.cancel)
        console.print(
            f"{signal.Signals(number).name}: the running step has {STEP_GRACE_S:g} s to end, then a checkpoint"
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    if not received:
        return 0
    console.print(f"stopped by {signal.Signals(received[0]).name}; the last checkpoint stands")
    return 128 + received[0]


def once_of(options: argparse.Namespace) -> Once | None:
    """What the options ask for instead of training."""

    async def score(run: Run, *others: Any) -> None:
        from learner.once import score

        await score(run, *others, is_plain=options.plain)

    async def calibrate(run: Run, *others: Any) -> None:
        from learner.once import calibrate_checkpoint

        await calibrate_checkpoint(run, *others, metric=options.calibrate)

    if options.calibrate:
        return Once("calibration", calibrate)
    return Once("evaluation", score) if options.evaluate else None


async def train_what_is_left(run: Run, console: Console) -> None:
    """Train a run to its end; when an error ends it, its last whole step is saved."""
    from learner.train import train

    if run.progress.done:
        console.print(finished_before(run.progress))
        return
    try:
        await train(run)
    except Exception as error:
        await save_what_stands(run, error, console)
        raise


def finished_before(progress: Progress) -> str:
    """What is said of a run that is resumed at its end, as a job that is queued again does it."""
    return (
        f"step {progress.step} of {progress.num_steps} is done: this run had finished, and nothing is left to train; "
        "raise training.max_steps or num_train_epochs to go on"
    )


async def save_what_stands(run: Run, error: Exception, console: Console) -> None:
    """Write a checkpoint of the last whole step of a run that `error` ends, unless the guard found it spoilt."""
    from learner.reporting.collapse_guard import RunLeftItsBands

    if isinstance(error, RunLeftItsBands):
        return
    try:
        await run.save_last_whole_step()
    except Exception as also:  # the first error is the one to be told; this one may be its cause, as with a full disk
        console.print(f"the last whole step could not be saved: {also}", style="red", markup=False)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m learner", description=__doc__)
    parser.add_argument("--config", type=user_path, required=True, help="the run's YAML file")
    parser.add_argument("--evaluate", action="store_true", help="score model.model on custom.val_jsonl and end")
    parser.add_argument("--plain", action="store_true", help="leave the checkpoint's operating point unused")
    parser.add_argument("--calibrate", metavar="METRIC", help="find the operating point at which METRIC is highest")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the configuration")
    return parser


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is closed, and what torch has imported would take a second to tear down

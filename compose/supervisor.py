"""A whole run on one machine: servers, wait until ready, the learner, watch both, stop in reverse order."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console

from compose.announcement import announced
from compose.doctor import EarlyPreflight, check_launch
from compose.launch_plan import Launch, LaunchPlan, PlannedServer, ServerProgram, Work, plan_launch
from compose.process import ChildProcess, ProcessSpec
from compose.readiness import Probe, ServerProcess, wait_until_ready
from compose.watch import ServerWatch, WatchRules
from shared.config.load import save_resolved
from shared.config.models import Config
from shared.errors import BoxloopError
from shared.run_folder import LOCK_VARIABLE, lock_run

SERVER_GRACE_S = 10.0
WORK_GRACE_S = 120.0
"""Time for the learner's own grace period of 20 s (learner/__main__.py), the pack it is at, and its last checkpoint."""
WATCH_INTERVAL_S = 0.2
PASSED_ON = frozenset({0, 2, 3})


class _Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP reached the supervisor; no `except Exception` may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_supervised(
    launch: Launch,
    work: Work | None = Work(),
    *,
    program: ServerProgram = ServerProgram(),
    console: Console | None = None,
) -> int:
    """Run `work` beside its rollout servers and return the exit code; nothing that was started outlives the call.

    What the doctor finds at once is a ConfigError before anything is started. Without work the servers run until a
    signal. 0 done, 1 the work died or no server is left, 2 the work refused its config or data, 130/143 after
    SIGINT/SIGTERM. Must be called from the main thread. Raises ConfigError for what cannot run, and ServerNeverReady,
    whose exit code is 3.
    """
    console = console or Console(stderr=True)
    plan = plan_launch(launch, work, program)
    if work is not None:
        check_launch(plan, work, console)
    try:
        with _signals_raised(), ExitStack() as stack:
            if work is not None and work.trains:
                plan = _locked(plan, stack)
            save_resolved(plan.config, plan.resolved)
            _drop_weights(plan.weights)
            stack.callback(_drop_weights, plan.weights)
            servers = [_started(planned, stack) for planned in plan.servers]
            if work is None:
                stack.enter_context(announced([server.base_url for server in servers], plan.resolved.parent))
            with _early_preflight(plan, console) as look:
                wait_until_ready(servers, launch.wait_timeout, launch.wait_interval, console, meanwhile=look)
            child = None
            if plan.work is not None:
                child = ChildProcess(plan.work)
                stack.callback(child.stop, WORK_GRACE_S)
            return _watch(child, servers, _watch_rules(launch, plan.config), console)
    except _Signalled as stop:
        return 128 + stop.number


def run_program(spec: ProcessSpec, console: Console | None = None) -> int:
    """Run one program to its end, under the same rules: the exit code, 130/143 after SIGINT/SIGTERM, nothing left."""
    try:
        with _signals_raised(), ExitStack() as stack:
            child = ChildProcess(spec)
            stack.callback(child.stop, WORK_GRACE_S)
            return _finish(child, console or Console(stderr=True))
    except _Signalled as stop:
        return 128 + stop.number


def _locked(plan: LaunchPlan, stack: ExitStack) -> LaunchPlan:
    """Hold the run's folder, for as long as the learner lives too. Raises ConfigError while another run holds it."""
    lock = stack.enter_context(lock_run(plan.config.training.output_dir))
    if lock is None or plan.work is None:
        return plan
    environment = {**plan.work.environment, LOCK_VARIABLE: str(lock)}
    return replace(plan, work=replace(plan.work, environment=environment, inherits=(lock,)))


def _drop_weights(folder: Path | None) -> None:
    """Free the shared memory that this run's weights took, or those of one that was killed."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _started(planned: PlannedServer, stack: ExitStack) -> ServerProcess:
    server = ServerProcess(ChildProcess(planned.process), planned.base_url)
    stack.callback(server.stop, SERVER_GRACE_S)
    return server


@contextmanager
def _early_preflight(plan: LaunchPlan, console: Console) -> Iterator[Callable[[], None]]:
    """Look at data and tokenizer while servers load onto GPUs, which takes minutes; a CPU's learner is at it soon.

    Gives what is to be called meanwhile; it raises ConfigError for what was found.
    """
    if plan.work is None or not plan.launch.server_gpus or shutil.which("nvidia-smi") is None:
        yield lambda: None
        return
    preflight = EarlyPreflight(plan, console)
    try:
        yield preflight.look
    finally:
        preflight.stop()


def _watch_rules(launch: Launch, config: Config) -> WatchRules:
    return WatchRules(
        max_restarts=launch.max_restarts,
        silent_s=config.rollout.vllm.server.stall_timeout_s,
        loading_s=launch.wait_timeout,
    )


def _watch(work: ChildProcess | None, servers: list[ServerProcess], rules: WatchRules, console: Console) -> int:
    """Keep the servers running until the work ends, or until none of them is left; without work, until a signal."""
    with Probe() as probe:
        watches = [ServerWatch(server, probe, rules, partial(_warn, console)) for server in servers]
        while work is None or work.exit_code is None:
            for watch in watches:
                watch.look()
            if watches and all(watch.given_up for watch in watches):
                return BoxloopError.exit_code
            time.sleep(WATCH_INTERVAL_S)
    return _finish(work, console)


def _finish(work: ChildProcess, console: Console) -> int:
    """The exit code of the whole, once the work has ended."""
    while (code := work.exit_code) is None:
        time.sleep(WATCH_INTERVAL_S)
    if code != 0:
        _warn(console, f"{work.spec.name} failed with code {code}; its log is {work.spec.log}")
    return code if code in PASSED_ON else BoxloopError.exit_code


def _warn(console: Console, message: str) -> None:
    console.print(message, style="red", highlight=False, markup=False)


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Turn the first stop signal into `_Signalled`; later ones must not cut the orderly end short."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise _Signalled(number)

    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

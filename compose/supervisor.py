"""A whole run on one machine: servers, wait until ready, the learner, watch both, stop in reverse order."""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import yaml
from rich.console import Console

from compose.environment import child_environment, new_token
from compose.process import ChildProcess, ProcessSpec
from compose.readiness import Probe, ServerProcess, wait_until_ready
from compose.watch import ServerWatch, WatchRules
from shared.config.load import load_config, save_resolved
from shared.config.models import Config
from shared.errors import BoxloopError, ConfigError
from shared.weights_root import weights_root

SERVER_GRACE_S = 10.0
WORK_GRACE_S = 60.0
"""Time for the learner's own grace period (learner/__main__.py) and its last checkpoint."""
WATCH_INTERVAL_S = 0.2
PASSED_ON = frozenset({0, 2, 3})
VLLM = "custom.extra.rollout_matching.vllm"


@dataclass(frozen=True)
class Launch:
    """What `boxloop up` is told. No GPUs means the CPU; `server_port` 0 means any free ports.

    `max_restarts` counts for each server.
    """

    config: Path
    overrides: tuple[str, ...] = ()
    server_gpus: tuple[str, ...] = ()
    train_gpus: tuple[str, ...] = ()
    vllm_gpu_memory_utilization: float | None = None
    server_tp: int | None = None
    server_port: int = 8000
    wait_timeout: float = 900.0
    wait_interval: float = 1.0
    max_restarts: int = 3
    disable_proxy: bool = True


@dataclass(frozen=True)
class Work:
    """The process that the servers are there for: `python -m MODULE --config FILE ARGUMENTS… ADDRESSES`.

    `needs_servers` starts them even where the config alone would not ask for any.
    """

    name: str = "learner"
    module: str = "learner"
    arguments: tuple[str, ...] = ()
    needs_servers: bool = False
    resolved_name: str = "config.resolved.yaml"


@dataclass(frozen=True)
class ServerProgram:
    """What a server is: `python -m MODULE --config FILE --port N ARGUMENTS…`."""

    module: str = "rollout_server"
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """Everything known before the first process starts. `weights` is the run's own folder in shared memory, if any."""

    config: Config
    resolved: Path
    weights: Path | None
    ports: tuple[int, ...]
    gpus_per_server: int
    token: str


class _Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP reached the supervisor; no `except Exception` may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_supervised(
    launch: Launch,
    work: Work = Work(),
    *,
    program: ServerProgram = ServerProgram(),
    console: Console | None = None,
) -> int:
    """Run `work` beside its rollout servers and return the exit code; nothing that was started outlives the call.

    0 done, 1 the work died or no server is left, 2 the work refused its config or data, 130/143 after SIGINT/SIGTERM.
    Must be called from the main thread. Raises ConfigError before anything is started and ServerNeverReady, whose exit
    code is 3.
    """
    console = console or Console(stderr=True)
    plan = _plan(launch, work)
    try:
        with _signals_raised(), ExitStack() as stack:
            _drop_weights(plan.weights)
            stack.callback(_drop_weights, plan.weights)
            servers = [_start_server(launch, plan, index, program, stack) for index in range(len(plan.ports))]
            wait_until_ready(servers, launch.wait_timeout, launch.wait_interval, console)
            child = _start_work(launch, plan, work, servers, stack)
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


def _plan(launch: Launch, work: Work) -> _Plan:
    config, weights = _with_weights(launch, work)
    tensor_parallel = config.rollout.vllm.tensor_parallel_size
    if len(launch.server_gpus) % tensor_parallel:
        raise ConfigError(
            f"server_gpus={','.join(launch.server_gpus)} are {len(launch.server_gpus)} GPUs, which servers of "
            f"{tensor_parallel} (server_tp) do not divide; give a multiple"
        )
    num_servers = 0
    if config.decodes or work.needs_servers:
        num_servers = max(1, len(launch.server_gpus) // tensor_parallel)
    written = len(config.rollout.vllm.server.servers)
    if written not in (0, num_servers):
        raise ConfigError(
            f"{VLLM}.server.servers names {written} servers and server_gpus asks for {num_servers}; leave the list out"
        )
    ports = _free_ports(config.rollout.vllm.server.host, launch.server_port, num_servers)
    resolved = config.training.output_dir / work.resolved_name
    save_resolved(config, resolved)
    return _Plan(config, resolved, weights, ports, tensor_parallel if launch.server_gpus else 0, new_token())


def _with_weights(launch: Launch, work: Work) -> tuple[Config, Path | None]:
    """The configuration, and the folder for weights, unless that is the user's own.

    Work that may run beside a training of the same output directory gets another folder than the training.
    """
    overrides = launch.overrides + _engine_overrides(launch)
    config = load_config(launch.config, overrides)
    if config.rollout.vllm.sync.weights_root is not None:
        return config, None
    folder = weights_root(config)
    if work == Work():
        return config, folder
    folder = folder.with_name(f"{folder.name}-{work.name}")
    return load_config(launch.config, (*overrides, f"{VLLM}.sync.weights_root={folder}")), folder


def _engine_overrides(launch: Launch) -> tuple[str, ...]:
    given = {
        "gpu_memory_utilization": launch.vllm_gpu_memory_utilization,
        "tensor_parallel_size": launch.server_tp,
    }
    return tuple(f"{VLLM}.{key}={value}" for key, value in given.items() if value is not None)


def _free_ports(host: str, first: int, count: int) -> tuple[int, ...]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = []
    with ExitStack() as held:  # held together, so that no free port is picked twice
        for index in range(count):
            listener = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wanted = first + index if first else 0
            try:
                listener.bind((host, wanted))
            except OSError as error:
                raise ConfigError(
                    f"server {index} cannot listen on {host}:{wanted} ({error.strerror}); choose another server_port"
                ) from error
            ports.append(listener.getsockname()[1])
    return tuple(ports)


def _drop_weights(folder: Path | None) -> None:
    """Free the shared memory that this run's weights took, or those of one that was killed."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _start_server(launch: Launch, plan: _Plan, index: int, program: ServerProgram, stack: ExitStack) -> ServerProcess:
    port, size = plan.ports[index], plan.gpus_per_server
    gpus = launch.server_gpus[index * size : (index + 1) * size]
    arguments = ("--config", str(plan.resolved), "--port", str(port), *program.arguments)
    child = ChildProcess(
        ProcessSpec(
            name=f"server-{index}",
            argv=(sys.executable, "-m", program.module, *arguments),
            environment=_environment(launch, plan, gpus),
            log=plan.config.training.output_dir / f"server-{index}.log",
        )
    )
    host = plan.config.rollout.vllm.server.host
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    server = ServerProcess(child, f"http://{reachable}:{port}")
    stack.callback(server.stop, SERVER_GRACE_S)
    return server


def _start_work(
    launch: Launch, plan: _Plan, work: Work, servers: list[ServerProcess], stack: ExitStack
) -> ChildProcess:
    addresses = yaml.safe_dump(
        [{"base_url": server.base_url} for server in servers], default_flow_style=True, width=10**6
    )
    override = f"{VLLM}.server.servers={addresses.strip()}"
    child = ChildProcess(
        ProcessSpec(
            name=work.name,
            argv=(sys.executable, "-m", work.module, "--config", str(plan.resolved), *work.arguments, override),
            environment=_environment(launch, plan, launch.train_gpus),
            log=plan.config.training.output_dir / f"{work.name}.log",
            on_console=True,
        )
    )
    stack.callback(child.stop, WORK_GRACE_S)
    return child


def _environment(launch: Launch, plan: _Plan, gpus: tuple[str, ...]) -> dict[str, str]:
    return child_environment(
        os.environ,
        gpus=gpus,
        token=plan.token,
        num_processes=len(plan.ports) + 1,
        disable_proxy=launch.disable_proxy,
    )


def _watch_rules(launch: Launch, config: Config) -> WatchRules:
    return WatchRules(
        max_restarts=launch.max_restarts,
        silent_s=config.rollout.vllm.server.stall_timeout_s,
        loading_s=launch.wait_timeout,
    )


def _watch(work: ChildProcess, servers: list[ServerProcess], rules: WatchRules, console: Console) -> int:
    """Keep the servers running until the work ends, or until none of them is left."""
    with Probe() as probe:
        watches = [ServerWatch(server, probe, rules, partial(_warn, console)) for server in servers]
        while work.exit_code is None:
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

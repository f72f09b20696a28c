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
from pathlib import Path
from types import FrameType

import yaml
from rich.console import Console

from compose.environment import child_environment, new_token
from compose.process import ChildProcess, ProcessSpec
from compose.readiness import ServerProcess, wait_until_ready
from shared.config.load import load_config, save_resolved
from shared.config.models import Config
from shared.errors import BoxloopError, ConfigError
from shared.weights_root import weights_root

SERVER_GRACE_S = 10.0
WORK_GRACE_S = 20.0
WATCH_INTERVAL_S = 0.2
PASSED_ON = frozenset({0, 2, 3})
VLLM = "custom.extra.rollout_matching.vllm"


@dataclass(frozen=True)
class Launch:
    """What `boxloop up` is told. No GPUs means the CPU; `server_port` 0 means any free ports."""

    config: Path
    overrides: tuple[str, ...] = ()
    server_gpus: tuple[str, ...] = ()
    train_gpus: tuple[str, ...] = ()
    vllm_gpu_memory_utilization: float | None = None
    server_tp: int | None = None
    server_port: int = 8000
    wait_timeout: float = 900.0
    wait_interval: float = 1.0
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
class _Plan:
    """Everything known before the first process starts."""

    config: Config
    resolved: Path
    ports: tuple[int, ...]
    gpus_per_server: int
    token: str


class _Signalled(BaseException):
    """SIGINT, SIGTERM or SIGHUP reached the supervisor; no `except Exception` may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_supervised(
    launch: Launch, work: Work = Work(), *, server_module: str = "rollout_server", console: Console | None = None
) -> int:
    """Run `work` beside its rollout servers and return the exit code; nothing that was started outlives the call.

    0 done, 1 the work or a server died, 2 the work refused its config or data, 130/143 after SIGINT/SIGTERM. Must be
    called from the main thread. Raises ConfigError before anything is started and ServerNeverReady, whose exit code
    is 3.
    """
    console = console or Console(stderr=True)
    plan = _plan(launch, work)
    try:
        with _signals_raised(), ExitStack() as stack:
            stack.callback(_drop_weights, plan.config)
            servers = [_start_server(launch, plan, index, server_module, stack) for index in range(len(plan.ports))]
            wait_until_ready(servers, launch.wait_timeout, launch.wait_interval, console)
            child = _start_work(launch, plan, work, servers, stack)
            return _watch(child, servers, console)
    except _Signalled as stop:
        return 128 + stop.number


def run_program(spec: ProcessSpec, console: Console | None = None) -> int:
    """Run one program to its end, under the same rules: the exit code, 130/143 after SIGINT/SIGTERM, nothing left."""
    try:
        with _signals_raised(), ExitStack() as stack:
            child = ChildProcess(spec)
            stack.callback(child.stop, WORK_GRACE_S)
            return _watch(child, [], console or Console(stderr=True))
    except _Signalled as stop:
        return 128 + stop.number


def _plan(launch: Launch, work: Work) -> _Plan:
    config = load_config(launch.config, launch.overrides + _engine_overrides(launch))
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
    return _Plan(config, resolved, ports, tensor_parallel if launch.server_gpus else 0, new_token())


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


def _drop_weights(config: Config) -> None:
    """Free the shared memory that the run's weights took, unless the folder is the user's own."""
    if config.rollout.vllm.sync.weights_root is None:
        shutil.rmtree(weights_root(config), ignore_errors=True)


def _start_server(launch: Launch, plan: _Plan, index: int, module: str, stack: ExitStack) -> ServerProcess:
    port, size = plan.ports[index], plan.gpus_per_server
    gpus = launch.server_gpus[index * size : (index + 1) * size]
    arguments = ("--config", str(plan.resolved), "--port", str(port))
    child = ChildProcess(
        ProcessSpec(
            name=f"server-{index}",
            argv=(sys.executable, "-m", module, *arguments),
            environment=_environment(launch, plan, gpus),
            log=plan.config.training.output_dir / f"server-{index}.log",
        )
    )
    stack.callback(child.stop, SERVER_GRACE_S)
    host = plan.config.rollout.vllm.server.host
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return ServerProcess(child, f"http://{reachable}:{port}")


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


def _watch(work: ChildProcess, servers: list[ServerProcess], console: Console) -> int:
    while (code := work.exit_code) is None:
        for server in servers:
            if (server_code := server.child.exit_code) is not None:
                message = f"{server.name} died with code {server_code}; {server.child.spec.log} ends with"
                console.print(f"{message}\n{server.child.log_tail()}", style="red", highlight=False, markup=False)
                return BoxloopError.exit_code
        time.sleep(WATCH_INTERVAL_S)
    if code != 0:
        console.print(
            f"{work.spec.name} failed with code {code}; its log is {work.spec.log}",
            style="red",
            highlight=False,
            markup=False,
        )
    return code if code in PASSED_ON else BoxloopError.exit_code


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

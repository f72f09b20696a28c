"""What a run on one machine will start: every process with its command and environment, before any is started."""

import os
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, Field

from compose.environment import child_environment, new_token
from compose.process import ProcessSpec
from shared.access import LAST_PORT, TOKEN_VARIABLE
from shared.config.load import LoadedConfig, load_with_origins
from shared.config.models import Config
from shared.config.overrides import Override
from shared.errors import ConfigError
from shared.weights_root import weights_root

VLLM = "custom.extra.rollout_matching.vllm"


def _each_once(gpus: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name, times in Counter(gpus).items() if times > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} stands there more than once; a GPU holds one server")
    return gpus


Port = Annotated[int, Field(ge=0, le=LAST_PORT)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Launch:
    """What `boxloop up` is told. No GPUs means the CPU, on which `cpu_servers` run.

    `server_port` 0 means any free ports. `max_restarts` counts for each server. A learner is one process on one GPU,
    which may be one of the servers'.
    """

    config: Path
    overrides: tuple[Override, ...] = ()
    server_gpus: Annotated[tuple[str, ...], AfterValidator(_each_once)] = ()
    train_gpus: Annotated[tuple[str, ...], Field(max_length=1)] = ()
    cpu_servers: Annotated[int, Field(ge=1)] = 1
    vllm_gpu_memory_utilization: float | None = None
    server_tp: int | None = None
    server_port: Port = 8000
    wait_timeout: Seconds = 900.0
    wait_interval: Seconds = 1.0
    max_restarts: Annotated[int, Field(ge=0)] = 3
    disable_proxy: bool = True


@dataclass(frozen=True)
class Work:
    """The process that the servers are there for: `python -m MODULE --config FILE ARGUMENTS… ADDRESSES`."""

    name: str = "learner"
    module: str = "learner"
    arguments: tuple[str, ...] = ()
    resolved_name: str = "config.resolved.yaml"
    learns: bool = True
    """whether it holds the model, to move it or to send it to the servers"""

    @property
    def trains(self) -> bool:
        """Whether it writes into the run's folder itself; an evaluation has one of its own in there."""
        return self.resolved_name == Work.resolved_name


@dataclass(frozen=True)
class ServerProgram:
    """What a server is: `python -m MODULE --config FILE --port N ARGUMENTS…`."""

    module: str = "rollout_server"
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedServer:
    """A server to start, and where it will answer."""

    process: ProcessSpec
    base_url: str


@dataclass(frozen=True)
class LaunchPlan:
    """Everything known before the first process starts.

    `resolved` is where the configuration is written for the processes to read. `weights` is the run's own folder in
    shared memory, None when the user named one. `work` None means servers alone.
    """

    launch: Launch
    loaded: LoadedConfig
    resolved: Path
    weights: Path | None
    servers: tuple[PlannedServer, ...]
    work: ProcessSpec | None

    @property
    def config(self) -> Config:
        return self.loaded.config


def plan_launch(launch: Launch, work: Work | None, program: ServerProgram = ServerProgram()) -> LaunchPlan:
    """Decide on all that `launch` starts; nothing is started or written. Raises ConfigError when it can't be."""
    loaded, weights = _with_weights(launch, work)
    config = loaded.config
    tensor_parallel = config.rollout.vllm.tensor_parallel_size
    ports = _free_ports(config.rollout.vllm.server.host, launch.server_port, _num_servers(launch, config, work))
    resolved = config.training.output_dir / (work.resolved_name if work else "config.serve.yaml")
    token = new_token() if work else os.environ.get(TOKEN_VARIABLE, "")

    def environment(gpus: tuple[str, ...]) -> dict[str, str]:
        return child_environment(
            os.environ,
            gpus=gpus,
            token=token,
            num_processes=len(ports) + (work is not None),
            disable_proxy=launch.disable_proxy,
        )

    servers = []
    for index, port in enumerate(ports):
        size = tensor_parallel if launch.server_gpus else 0
        gpus = launch.server_gpus[index * size : (index + 1) * size]
        servers.append(_planned_server(index, port, config, resolved, program, environment(gpus)))
    planned_work = _planned_work(work, servers, config, resolved, environment(launch.train_gpus)) if work else None
    return LaunchPlan(launch, loaded, resolved, weights, tuple(servers), planned_work)


def _num_servers(launch: Launch, config: Config, work: Work | None) -> int:
    """How many servers the GPUs make; raises ConfigError when they don't divide, or the config lists another number."""
    tensor_parallel = config.rollout.vllm.tensor_parallel_size
    if len(launch.server_gpus) % tensor_parallel:
        raise ConfigError(
            f"server_gpus={','.join(launch.server_gpus)} are {len(launch.server_gpus)} GPUs, which servers of "
            f"{tensor_parallel} (server_tp) do not divide; give a multiple"
        )
    if launch.server_gpus and launch.cpu_servers > 1:
        raise ConfigError(f"cpu_servers={launch.cpu_servers} is for servers on the CPU; leave it or server_gpus out")
    num_servers = 0
    if work is None or config.decodes:
        num_servers = len(launch.server_gpus) // tensor_parallel if launch.server_gpus else launch.cpu_servers
    written = len(config.rollout.vllm.server.servers)
    if written not in (0, num_servers):
        raise ConfigError(
            f"{VLLM}.server.servers names {written} servers and server_gpus asks for {num_servers}; leave the list out"
        )
    return num_servers


def _planned_server(
    index: int, port: int, config: Config, resolved: Path, program: ServerProgram, environment: dict[str, str]
) -> PlannedServer:
    arguments = ("--config", str(resolved), "--port", str(port), *program.arguments)
    host = config.rollout.vllm.server.host
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    process = ProcessSpec(
        name=f"server-{index}",
        argv=(sys.executable, "-m", program.module, *arguments),
        environment=environment,
        log=config.training.output_dir / f"server-{index}.log",
    )
    return PlannedServer(process, f"http://{reachable}:{port}")


def _planned_work(
    work: Work, servers: list[PlannedServer], config: Config, resolved: Path, environment: dict[str, str]
) -> ProcessSpec:
    override = servers_override([server.base_url for server in servers])
    return ProcessSpec(
        name=work.name,
        argv=(sys.executable, "-m", work.module, "--config", str(resolved), *work.arguments, override),
        environment=environment,
        log=config.training.output_dir / f"{work.name}.log",
        on_console=True,
    )


def servers_override(base_urls: Sequence[str]) -> str:
    """The `key=value` argument that tells a learner where its servers are."""
    addresses = yaml.safe_dump([{"base_url": url} for url in base_urls], default_flow_style=True, width=10**6)
    return f"{VLLM}.server.servers={addresses.strip()}"


def _with_weights(launch: Launch, work: Work | None) -> tuple[LoadedConfig, Path | None]:
    """The configuration, and the folder for weights, unless that is the user's own.

    Work that may run beside a training of the same output directory gets another folder than the training.
    """
    overrides = launch.overrides + _engine_overrides(launch)
    loaded = load_with_origins(launch.config, overrides)
    if loaded.config.rollout.vllm.sync.weights_root is not None:
        return loaded, None
    folder = weights_root(loaded.config.rollout.vllm.sync, loaded.config.training.output_dir)
    if work is None or work == Work():
        return loaded, folder
    folder = folder.with_name(f"{folder.name}-{work.name}")
    return load_with_origins(launch.config, (*overrides, (f"{VLLM}.sync.weights_root", folder))), folder


def _engine_overrides(launch: Launch) -> tuple[Override, ...]:
    given = {
        "gpu_memory_utilization": launch.vllm_gpu_memory_utilization,
        "tensor_parallel_size": launch.server_tp,
    }
    return tuple((f"{VLLM}.{key}", value) for key, value in given.items() if value is not None)


def _free_ports(host: str, first: int, count: int) -> tuple[int, ...]:
    if first + count - 1 > LAST_PORT:
        raise ConfigError(f"server_port={first} leaves no port for {count} servers, {LAST_PORT} is the last; lower it")
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

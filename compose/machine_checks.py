"""Whether a machine has room for a run. Pure: facts and configuration in, findings out.

Needs are lower bounds from the size of the model alone; activations and caches come on top.
"""

from collections.abc import Iterator, Sequence

from compose.launch_plan import Launch
from compose.machine import Gpu, Machine
from compose.model_size import ModelSize
from shared.config.models import Config
from shared.findings import Finding, failed, passed, warned
from shared.weights_root import SHARED_MEMORY

TRAINED_BYTES = 16
"""A trained parameter: float32 master, gradient and AdamW's two moments."""
FROZEN_BYTES = 4
"""One that stands still while adapters are trained, at the most."""
SAVED_BYTES = 12
"""A trained parameter in a checkpoint: float32 master and the two moments."""
MASTER_BYTES = 4
GIB = 2**30


def machine_findings(
    config: Config, launch: Launch, size: ModelSize | None, machine: Machine, *, learns: bool = True
) -> Iterator[Finding]:
    """All checks of the machine, in the order in which they are told; those of a learner's model if it `learns`."""
    yield from _gpus(config, launch, size, machine)
    if size is not None and learns:
        yield from _memory(config, launch, size, machine)
        yield from _shared_memory(config, launch, size, machine)
        yield from _disk(config, size, machine)
    yield _proxies(launch, machine)


def _gpus(config: Config, launch: Launch, size: ModelSize | None, machine: Machine) -> Iterator[Finding]:
    named = list(dict.fromkeys((*launch.server_gpus, *launch.train_gpus)))
    if not named:
        yield passed("gpus", "none are asked for: everything runs on the CPU")
        return
    usable = machine.torch is None or machine.torch.num_gpus >= len(named)
    if machine.gpus is None and usable and machine.torch is not None:
        yield passed("gpus", f"{', '.join(named)}: {machine.torch.told} sees them; {machine.driver}")
        return
    if machine.gpus is None:
        told = f"; {machine.torch.told} sees {machine.torch.num_gpus} of them" if machine.torch else ""
        cure = "mend the driver, or leave server_gpus and train_gpus empty to run on the CPU"
        yield failed("gpus", f"{', '.join(named)} asked for, and {machine.driver}{told}", cure)
        return
    missing = [name for name in named if _gpu(machine.gpus, name) is None]
    if missing:
        there = ", ".join(gpu.index for gpu in machine.gpus) or "none"
        yield failed(
            "gpus", f"{', '.join(missing)} asked for, there are {there}", "name others in server_gpus, train_gpus"
        )
        return
    if not usable and machine.torch is not None:
        told = f"{', '.join(named)} are there, but {machine.torch.told} can use {machine.torch.num_gpus} of them"
        yield failed("gpus", told, "install a build of torch that fits the driver: https://pytorch.org/get-started")
        return
    yield passed("gpus", ", ".join(f"{name}: {gpu.name}" for name in named if (gpu := _gpu(machine.gpus, name))))
    if size is not None:
        yield from _server_memory(config, launch, size, machine.gpus)
        yield from _learner_memory(config, launch, size, machine.gpus)


def _server_memory(config: Config, launch: Launch, size: ModelSize, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    share, ranks = config.rollout.vllm.gpu_memory_utilization, config.rollout.vllm.tensor_parallel_size
    needed = size.num_bytes / ranks
    for gpu in filter(None, (_gpu(gpus, name) for name in launch.server_gpus)):
        taken, check = share * gpu.total_bytes, f"gpu {gpu.index}, server"
        if not gpu.total_bytes:
            continue
        if taken < needed:
            cure = "raise vllm_gpu_memory_utilization or server_tp"
            yield failed(check, f"{_gib(taken)} of it for weights of {_gib(needed)}", cure)
        elif taken > gpu.free_bytes:
            cure = "end what else runs there, or lower vllm_gpu_memory_utilization"
            yield failed(check, f"{_gib(taken)} are asked for, {_gib(gpu.free_bytes)} are free", cure)
        else:
            yield passed(check, f"{_gib(taken)} for weights of {_gib(needed)} and the cache")


def _learner_memory(config: Config, launch: Launch, size: ModelSize, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    needed = _learner_bytes(config, size)
    for gpu in filter(None, (_gpu(gpus, name) for name in launch.train_gpus)):
        shared = gpu.index in launch.server_gpus or gpu.uuid in launch.server_gpus
        taken = config.rollout.vllm.gpu_memory_utilization * gpu.total_bytes if shared else 0
        left, check = gpu.free_bytes - taken, f"gpu {gpu.index}, learner"
        beside = " beside the server" if shared else ""
        if gpu.total_bytes and left < needed:
            cure = "train adapters, freeze parts, or take a larger GPU"
            cure = f"lower vllm_gpu_memory_utilization, {cure}" if shared else cure
            yield warned(check, f"{_gib(left)} are free{beside}, weights and optimizer take about {_gib(needed)}", cure)
        elif gpu.total_bytes:
            yield passed(check, f"{_gib(left)} free{beside}, weights and optimizer take about {_gib(needed)}")


def _memory(config: Config, launch: Launch, size: ModelSize, machine: Machine) -> Iterator[Finding]:
    """Main memory, for what runs on the CPU."""
    needed = 0 if launch.train_gpus else _learner_bytes(config, size)
    needed += size.num_bytes if config.decodes and not launch.server_gpus else 0
    told = f"{_gib(machine.memory_bytes)} free; on the CPU weights and optimizer take about {_gib(needed)}"
    if needed > machine.memory_bytes:
        yield warned("memory", told, "run on GPUs, train adapters, or take a smaller model")
    elif needed:
        yield passed("memory", told)


def _shared_memory(config: Config, launch: Launch, size: ModelSize, machine: Machine) -> Iterator[Finding]:
    """The folder that weights pass through: the newest full update is kept, and the newest merged one beside it.

    By http every server keeps what arrives in a file of its own, until it is loaded.
    """
    sync, root = config.rollout.vllm.sync, config.rollout.vllm.sync.weights_root
    in_shared_memory = root is None or root.resolve().is_relative_to(SHARED_MEMORY)
    if not config.decodes or not in_shared_memory:
        return
    servers = max(1, len(launch.server_gpus) // config.rollout.vllm.tensor_parallel_size)
    at_first = _published_bytes(config, launch, size) * (1 + (servers if sync.transport == "http" else 0))
    needed = at_first + (_published_bytes(config, launch, size) if config.sends_merged else 0)
    free = machine.shared_memory_bytes
    told = f"{_gib(free)} free in {SHARED_MEMORY}, updates take up to {_gib(needed)}"
    cure = "enlarge it (docker: shm_size), or set vllm.sync.weights_root to a folder on a disk"
    if free < at_first:
        yield failed("shared memory", told, cure)
    elif free < needed:
        yield warned("shared memory", told, cure)
    else:
        yield passed("shared memory", f"{told} ({sync.transport})")


def _disk(config: Config, size: ModelSize, machine: Machine) -> Iterator[Finding]:
    training, tuner = config.training, config.tuner
    if training.save_strategy == "no":
        return
    trained = size.num_parameters
    if tuner.train_type == "lora":  # at the most: what is frozen or not named gets no adapter
        trained = (tuner.lora_rank + tuner.use_dora) * size.num_sides
    one = trained * (MASTER_BYTES if training.save_only_model else SAVED_BYTES)
    limit = training.save_total_limit
    kept = one * (limit + 1 if limit is not None else 1)
    beside = " and modules_to_save" if tuner.modules_to_save else ""
    told = f"{_gib(machine.disk_bytes)} free for checkpoints of about {_gib(one)}{beside}"
    cure = "free some, move training.output_dir, or set save_total_limit or save_only_model"
    if machine.disk_bytes < one:
        yield failed("disk", told, cure)
    elif machine.disk_bytes < kept:
        yield warned("disk", f"{told}; {limit} are kept while one is written", cure)
    else:
        yield passed("disk", told + ("" if limit is not None else ", all of which are kept (save_total_limit)"))


def _published_bytes(config: Config, launch: Launch, size: ModelSize) -> int:
    """What is sent of the whole model: float32 masters, or a base under adapters in the type it computes in."""
    halved = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and bool(launch.train_gpus))
    return size.num_parameters * (MASTER_BYTES // 2 if halved and config.tuner.train_type == "lora" else MASTER_BYTES)


def _proxies(launch: Launch, machine: Machine) -> Finding:
    names = ", ".join(machine.proxies)
    if not machine.proxies:
        return passed("proxies", "none are set")
    if launch.disable_proxy:
        return passed("proxies", f"{names} set, and hidden from the processes")
    return warned("proxies", f"{names} set, and disable_proxy is false", "leave disable_proxy at true")


def _learner_bytes(config: Config, size: ModelSize) -> int:
    return size.num_parameters * (TRAINED_BYTES if config.tuner.train_type == "full" else FROZEN_BYTES)


def _gpu(gpus: Sequence[Gpu], name: str) -> Gpu | None:
    return next((gpu for gpu in gpus if name in (gpu.index, gpu.uuid)), None)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"

"""What this machine has, as far as a run depends on it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compose.environment import PROXY_VARIABLES
from shared.weights_root import SHARED_MEMORY

QUERY = ("--query-gpu=index,uuid,name,memory.total,memory.used", "--format=csv,noheader,nounits")
MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi lists it; 0 bytes in all where it does not say, as with memory shared with the CPU."""

    index: str
    uuid: str
    name: str
    total_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes


@dataclass(frozen=True)
class TorchView:
    """What torch sees of the GPUs that were named; `told` is what it said, with its version."""

    num_gpus: int
    told: str


@dataclass(frozen=True)
class Machine:
    """`gpus` is None when nothing here can list them; the other sizes are what is free. `proxies` are variables set.

    `driver` is what the driver's tool said instead of a list. `torch` is None when no GPU was named.
    """

    gpus: tuple[Gpu, ...] | None
    memory_bytes: int
    shared_memory_bytes: int
    disk_bytes: int
    proxies: tuple[str, ...]
    driver: str = ""
    torch: TorchView | None = None


def this_machine(output_dir: Path, environment: Mapping[str, str], named: Sequence[str] = ()) -> Machine:
    """Look at the machine, and at the GPUs that are `named` through torch, which takes seconds.

    `disk_bytes` is of the disk that `output_dir` is on, or will be.
    """
    gpus, driver = _gpus()
    return Machine(
        gpus=gpus,
        driver=driver,
        torch=torch_view(named) if named else None,
        memory_bytes=available_memory(),
        shared_memory_bytes=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0,
        disk_bytes=shutil.disk_usage(_existing(output_dir)).free,
        proxies=tuple(name for name in environment if name.lower() in PROXY_VARIABLES and name.lower() != "no_proxy"),
    )


def parse_gpus(listing: str) -> tuple[Gpu, ...]:
    """Read what nvidia-smi prints for QUERY; memory is in MiB."""
    rows = [[field.strip() for field in line.split(",")] for line in listing.splitlines() if line.strip()]
    return tuple(Gpu(index, uuid, name, _mebibytes(total), _mebibytes(used)) for index, uuid, name, total, used in rows)


def _mebibytes(text: str) -> int:
    return int(text) * MIB if text.isdecimal() else 0


def available_memory() -> int:
    """Bytes that programs can still take without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


TORCH_LOOKS = """
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        count and torch.zeros(1, device="cuda")
    except Exception as error:
        count, said = 0, [*said, error]
build = torch.version.cuda or torch.version.hip or "the CPU alone"
print(count, f"torch {torch.__version__} (built for {build})", *(getattr(each, "message", each) for each in said[:1]))
"""
"""A program that prints how many GPUs torch can compute on, and what it says of that."""


def torch_view(named: Sequence[str]) -> TorchView:
    """Ask torch, in a process of its own that is shown the `named` GPUs alone."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(named)}
    done = subprocess.run((sys.executable, "-c", TORCH_LOOKS), env=environment, capture_output=True, text=True)
    count, _, told = done.stdout.strip().partition(" ")
    if done.returncode or not count.isdecimal():
        return TorchView(0, f"torch cannot be asked: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
    return TorchView(int(count), told)


def _gpus() -> tuple[tuple[Gpu, ...] | None, str]:
    """The GPUs as the driver's tool lists them, or None and why not."""
    if shutil.which("nvidia-smi") is None:
        return None, "there is no nvidia-smi"
    try:
        done = subprocess.run(("nvidia-smi", *QUERY), capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"nvidia-smi fails: {error}"
    if done.returncode:
        return None, f"nvidia-smi says: {' '.join((done.stdout + done.stderr).split())[:200]}"
    return parse_gpus(done.stdout), ""


def _existing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    resolved = folder.resolve()
    return next(path for path in (resolved, *resolved.parents) if path.exists())

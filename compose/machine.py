"""What this machine has, as far as a run depends on it."""

import os
import shutil
import subprocess
from collections.abc import Mapping
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
class Machine:
    """`gpus` is None when nothing here can list them; the other sizes are what is free. `proxies` are variables set."""

    gpus: tuple[Gpu, ...] | None
    memory_bytes: int
    shared_memory_bytes: int
    disk_bytes: int
    proxies: tuple[str, ...]


def this_machine(output_dir: Path, environment: Mapping[str, str]) -> Machine:
    """Look at the machine; `disk_bytes` is of the disk that `output_dir` is on, or will be."""
    return Machine(
        gpus=_gpus(),
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


def _gpus() -> tuple[Gpu, ...] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    done = subprocess.run(("nvidia-smi", *QUERY), capture_output=True, text=True, timeout=30)
    return parse_gpus(done.stdout) if done.returncode == 0 else None


def _existing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    resolved = folder.resolve()
    return next(path for path in (resolved, *resolved.parents) if path.exists())

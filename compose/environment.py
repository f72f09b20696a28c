"""What child processes find in their environment."""

import os
import secrets
from collections.abc import Mapping, Sequence

from shared.access import TOKEN_VARIABLE

PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
LOCAL = "127.0.0.1,localhost"
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc gives large freed blocks back to the kernel and asks for them again; a training step on the CPU is a tenth
faster when it keeps them."""

SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "1000"}
"""OpenMP threads that spin while they wait take the core from the thread they wait for as soon as anything else runs
on the machine: a training step of 0.25 s then took 2 to 6 s."""


def new_token() -> str:
    """A random token, 32 bytes of it, that learner and servers of one run share. It never stands in an argv."""
    return secrets.token_urlsafe(32)


def child_environment(
    inherited: Mapping[str, str], *, gpus: Sequence[str], token: str, num_processes: int, disable_proxy: bool
) -> dict[str, str]:
    """The environment of one child.

    `gpus` is all it may see; none means it runs on the CPU. Processes on the CPU share the cores evenly, unless
    OMP_NUM_THREADS is already set. With `disable_proxy` traffic between them cannot be sent through a proxy.
    """
    environment = dict(inherited)
    if disable_proxy:
        for name in PROXY_VARIABLES:
            environment.pop(name, None)
            environment.pop(name.upper(), None)
        environment |= {"NO_PROXY": LOCAL, "no_proxy": LOCAL}
    environment |= {"CUDA_VISIBLE_DEVICES": ",".join(gpus), TOKEN_VARIABLE: token, "PYTHONUNBUFFERED": "1"}
    if not gpus:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // num_processes)))
        environment = KEEP_FREED_MEMORY | SPIN_BRIEFLY | environment
    return environment


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

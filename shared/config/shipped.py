"""The configurations that Boxloop ships: inside the package where it is installed, beside it in a clone."""

import logging
from functools import cache
from pathlib import Path

LOG = logging.getLogger(__name__)

FOLDER = "configs"


def shipped_configs() -> Path:
    """The folder that `configs/…` means where the working directory has none."""
    installed = Path(__file__).parents[1] / FOLDER
    return installed if installed.is_dir() else Path(__file__).parents[2] / FOLDER


@cache
def find_config(path: Path, otherwise: Path | None = None) -> Path:
    """`path`, or the shipped configuration of that name where there is no such file; says so, once.

    What is neither is left to whoever reads it, under the name `otherwise` if that is given.
    """
    if path.exists() and otherwise is None:
        return path
    shipped = shipped_configs().joinpath(*path.parts[1:])
    if path.is_absolute() or path.parts[:1] != (FOLDER,) or not shipped.is_file():
        return otherwise or path
    LOG.warning("%s is not in this folder; the one that Boxloop ships is read: %s", path, shipped)
    return shipped

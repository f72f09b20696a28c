"""The configurations that Boxloop ships: inside the package where it is installed, beside it in a clone."""

import logging
from pathlib import Path

LOG = logging.getLogger(__name__)

FOLDER = "configs"


def shipped_configs() -> Path:
    """The folder that `configs/…` means where the working directory has none."""
    installed = Path(__file__).parents[1] / FOLDER
    return installed if installed.is_dir() else Path(__file__).parents[2] / FOLDER


def find_config(path: Path) -> Path:
    """`path`, or the shipped configuration of that name where there is no such file; says so."""
    if path.exists() or path.is_absolute() or path.parts[:1] != (FOLDER,):
        return path
    shipped = shipped_configs().joinpath(*path.parts[1:])
    if not shipped.is_file():
        return path
    LOG.warning("%s is not in this folder; the one that Boxloop ships is read: %s", path, shipped)
    return shipped

"""What a checkpoint of adapters builds on: the learner puts them on it, and a server starts from it."""

import json
import re
from pathlib import Path

from shared.errors import ConfigError

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's own file; a folder that has one holds adapters and no model."""

_HUB_ID = re.compile(r"([\w.-]+/)?[\w.-]+")


def may_be_hub_id(model: str) -> bool:
    """Whether what is no folder here could be the name of a repository on the hub: `name` or `owner/name`."""
    return _HUB_ID.fullmatch(model) is not None


def holds_adapters(model: str | Path) -> bool:
    """Whether `model` is a folder of adapters."""
    return (Path(model) / ADAPTER_CONFIG).is_file()


def base_model(model: str) -> str:
    """The directory or hub id that a folder of adapters builds on; any other model is its own base.

    Raises ConfigError when the folder does not say, or names a directory that is gone.
    """
    if not holds_adapters(model):
        return model
    file = Path(model) / ADAPTER_CONFIG
    try:
        base = json.loads(file.read_text()).get("base_model_name_or_path")
    except ValueError as error:
        raise ConfigError(f"model.model: {file} is no JSON ({error}); use another checkpoint") from error
    if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise ConfigError(f"model.model: {file} builds on {base!r}, which is not there; correct that path")
    return str(base)

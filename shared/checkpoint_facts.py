"""What a checkpoint says of itself without being loaded: where it lies, what it builds on, which tokenizer it has."""

import hashlib
import json
import re
from pathlib import Path

from shared.errors import ConfigError

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's own file; a folder that has one holds adapters and no model."""

TOKENIZER_FILE = "tokenizer.json"

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


def checkpoint_folder(model: str) -> Path:
    """The folder of a checkpoint: `model` itself, or the local copy of a hub id, fetched when it is missing.

    Raises ConfigError for what is neither.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model))
    except (HFValidationError, OSError) as error:
        raise ConfigError(f"model.model: {model!r} is no folder and no hub id that can be fetched: {error}") from error


def folder_here(model: str) -> Path | None:
    """The folder of a checkpoint, or that of a hub id which was fetched before; nothing is fetched now."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def tokenizer_digest(folder: str | Path) -> str:
    """sha256 of the checkpoint's tokenizer.json in hexadecimal; empty for a hub id or a folder without one."""
    file = Path(folder) / TOKENIZER_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""

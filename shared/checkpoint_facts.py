"""What a checkpoint says of itself without being loaded: where it lies, what it builds on, which tokenizer it has."""

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from shared.errors import ConfigError

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's own file; a folder that has one holds adapters and no model."""

TOKENIZER_FILE = "tokenizer.json"
OPERATING_POINT_FILE = "operating_point.json"
"""How the checkpoint beside it is best decoded, found by `boxloop calibrate`; other weights have another."""
USAGE_FILE = "boxloop.json"
"""How the checkpoint beside it is asked: prompt, pixels, what decides decoding."""
ABOUT_THESE_WEIGHTS = (OPERATING_POINT_FILE, USAGE_FILE)
"""Files that hold for the weights beside them: an export takes them along, training writes its own or none."""

PROCESSOR_FILE, WHOLE_PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
"""Where an image processor's values stand: in a file of their own, or, as transformers 5 saves them, in the second."""
CHAT_TEMPLATE_FILE = "chat_template.json"
"""Where older processors keep the chat template that tokenizers have in chat_template.jinja."""

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


HUB_TIMEOUT_S = 10.0


def find_model(model: str) -> Path | None:
    """The folder of a model that is here, or None for one that the hub has and that is fetched when it is needed.

    Raises ConfigError for what is neither, saying what the hub said.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if Path(model).is_dir():
        return Path(model)
    if not may_be_hub_id(model):
        raise ConfigError(f"model.model: {model} is no folder, and no hub id (owner/name) either; correct the path")
    try:
        if (folder := folder_here(model)) is not None:
            return folder
        with tempfile.TemporaryDirectory() as elsewhere:  # a part of it must not pass for the whole later
            snapshot_download(model, allow_patterns="config.json", cache_dir=elsewhere, etag_timeout=HUB_TIMEOUT_S)
    except (HFValidationError, OSError, ValueError) as error:
        said = str(error).strip().splitlines() or [repr(error)]
        raise ConfigError(
            f"model.model: {model} is no folder here, nor a hub id (owner/name) that can be fetched: {said[0]}; "
            "correct the path, or fetch it first"
        ) from error
    return None


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


def image_processor_of(folder: str | Path) -> dict[str, Any]:
    """The values of a checkpoint's image processor. Raises ConfigError for a folder without readable ones."""
    own, whole = Path(folder) / PROCESSOR_FILE, Path(folder) / WHOLE_PROCESSOR_FILE
    try:
        if own.is_file() or not whole.is_file():
            found = json.loads(own.read_bytes())
        else:
            found = json.loads(whole.read_bytes())["image_processor"]
        if not isinstance(found, dict):
            raise ValueError(f"its values are {type(found).__name__}, no object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"model.model {folder} has no readable {PROCESSOR_FILE}, nor an image_processor in {WHOLE_PROCESSOR_FILE}: "
            f"{error}"
        ) from error
    return found


def num_positions(folder: str | Path) -> int | None:
    """Tokens that a checkpoint has positions for, by its config.json; None where that does not say."""
    try:
        config = json.loads((Path(folder) / "config.json").read_bytes())
        found = config.get("text_config", config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None


def chat_template_of(folder: str | Path) -> str | None:
    """The chat template of a processor's own file, None without one."""
    try:
        found = json.loads((Path(folder) / CHAT_TEMPLATE_FILE).read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def tokenizer_digest(folder: str | Path) -> str:
    """sha256 of the checkpoint's tokenizer.json in hexadecimal; empty for a hub id or a folder without one."""
    file = Path(folder) / TOKENIZER_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""

"""How large a checkpoint's model is, from the headers of its files: nothing of it is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path

from shared.checkpoint_facts import base_model
from shared.errors import ConfigError
from shared.safetensors_header import read_header


@dataclass(frozen=True)
class ModelSize:
    """Parameters, bytes in the type they are stored in, and rows and columns of all matrices, added up."""

    num_parameters: int
    num_bytes: int
    num_sides: int


def model_size(model: str) -> ModelSize | None:
    """The size of the model that `model.model` names; None for adapters of a base that is not on this disk.

    Raises ConfigError for a folder without readable weights.
    """
    folder = Path(base_model(model))
    if not folder.is_dir():
        return None
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"model.model: {folder} holds no *.safetensors; name a whole checkpoint")
    tensors = [entry for file in files for entry in _tensors(file)]
    return ModelSize(
        num_parameters=sum(math.prod(entry["shape"]) for entry in tensors),
        num_bytes=sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in tensors),
        num_sides=sum(sum(entry["shape"]) for entry in tensors if len(entry["shape"]) == 2),
    )


def _tensors(file: Path) -> list[dict[str, list[int]]]:
    """What a file lists; the tensors fill all of it behind the header."""
    try:
        tensors = list(read_header(file).values())
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        listed = max((entry["data_offsets"][1] for entry in tensors), default=0)
        size = file.stat().st_size - 8 - length
        if size != listed:
            raise ValueError(f"{size} bytes of tensors, its header lists {listed}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model.model: {file} is no whole safetensors file ({error}); fetch it again") from error
    return tensors

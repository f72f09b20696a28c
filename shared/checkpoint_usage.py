"""How a checkpoint is asked and decoded, in a file beside its weights: with it nobody needs its configuration."""

from pathlib import Path
from typing import Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.checkpoint_facts import USAGE_FILE
from shared.errors import DataError
from shared.whole_file import write_whole
from shared.wire import MAX_COUNT, RepeatTerminate, RepetitionPenalty

USAGE_VERSION: Final = 1
"""Raised by every change that an older Boxloop cannot read."""


class CheckpointUsage(BaseModel):
    """The content of `boxloop.json`: what the configuration of a training said of prompt, picture and decoding.

    Where a decoder is set, once the weights are calibrated, is in `operating_point.json` and not here.

        CheckpointUsage(system="", user_prompt="Detect all objects.", object_ordering="sorted", min_pixels=None,
                        max_pixels=1048576, stop_tokens=("<|im_end|>",), max_model_len=4096, max_new_tokens=1024)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = USAGE_VERSION
    system: str = Field(description="system prompt; empty = no system turn")
    user_prompt: str = Field(description="text after the image")
    object_ordering: Literal["sorted", "random"] = Field(description="order of objects in an answer, as it was taught")
    min_pixels: int | None = Field(gt=0, description="smallest image in pixels; null = the processor's")
    max_pixels: int | None = Field(gt=0, description="largest image in pixels; null = the processor's")
    coordinate_tokens: Literal["<|coord_{bin}|>"] = Field(
        default="<|coord_{bin}|>", description="how coordinates are written; bin is 0..999"
    )
    stop_tokens: tuple[str, ...] = Field(min_length=1, description="each of them ends an answer")
    max_model_len: int = Field(ge=1, description="longest prompt + answer in tokens")
    max_new_tokens: int = Field(ge=1, le=MAX_COUNT, description="longest answer in tokens")
    repetition_penalty: RepetitionPenalty = 1.0
    repeat_terminate: RepeatTerminate | None = Field(default=None, description="when a looping answer is ended")


def save_usage(usage: CheckpointUsage, checkpoint: Path) -> Path:
    """Write it into a checkpoint's folder, over an older one."""
    file = checkpoint / USAGE_FILE
    write_whole(file, usage.model_dump_json(indent=2).encode() + b"\n")
    return file


def read_usage(checkpoint: Path) -> CheckpointUsage | None:
    """How a checkpoint is used; None where the file is missing. Raises DataError for a broken or a newer one."""
    file = checkpoint / USAGE_FILE
    if not file.exists():
        return None
    cure = "correct it, or delete it and the built-in prompt is used"
    try:
        content: Any = orjson.loads(file.read_bytes())
        version = content["version"]
        if isinstance(version, int) and version > USAGE_VERSION:
            raise DataError(
                f"{file} is of version {version}, and this Boxloop reads up to {USAGE_VERSION}: upgrade Boxloop"
            )
        return CheckpointUsage.model_validate_json(file.read_bytes())
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise DataError(f"{file} is broken ({wrong}); {cure}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is broken ({error!r}); {cure}") from error

"""`boxloop predict`: a checkpoint, pictures, and nothing else; what a configuration would say, the checkpoint says."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from compose.launch_plan import Launch, Work
from compose.options import check_engine, fresh_folder
from compose.supervisor import run_supervised
from shared.checkpoint_facts import (
    USAGE_FILE,
    checkpoint_folder,
    holds_adapters,
    image_processor_of,
    may_be_hub_id,
    num_positions,
)
from shared.checkpoint_usage import CheckpointUsage, read_usage
from shared.config.overrides import Override
from shared.config.paths import expanded
from shared.config.shipped import shipped_configs
from shared.errors import ConfigError

CONFIG = shipped_configs() / "predict.yaml"
OUT = Path("predictions")
LOGS = "logs"
"""Folder in OUT for the configuration that was made, and for what the processes say."""
LONGEST = 4096
"""Tokens of prompt and answer where a checkpoint does not say how long they may be."""
LARGEST_PX = 1024 * 1024
"""Pixels of the largest picture there, as configs/base.yaml has it."""
ROLLOUT = "custom.extra.rollout_matching"


@dataclass(frozen=True)
class Wish:
    """What the command line asks for. `classes` as it is written, empty = all."""

    source: Path
    model: str
    out: Path | None = None
    engine: str = "hf"
    classes: str = ""
    is_plain: bool = False
    server_gpus: tuple[str, ...] = ()


def run_predict(wish: Wish, console: Console) -> int:
    """Predict and return the exit code: 0, or 1 when a picture failed.

    Raises ConfigError and DataError for what cannot be used, before anything is started.
    """
    check_engine(wish.engine)
    if not wish.source.exists():
        raise ConfigError(f"{wish.source} is not there; name a picture, a folder of pictures or a JSONL file")
    model = model_folder(wish.model)
    usage = read_usage(model)
    if usage is None:
        console.print(
            f"warning: {model} has no {USAGE_FILE}: it is asked with the built-in prompt, which may not be the one "
            "that it was trained with",
            style="yellow", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    out = fresh_folder(wish.out, OUT)
    return run_supervised(launch_of(wish, model, usage, out), work_of(wish, model, out), console=console)


def model_folder(model: str) -> Path:
    """The checkpoint's folder; one of the hub is fetched. Raises ConfigError for what is neither."""
    if not Path(expanded(model)).is_dir() and not may_be_hub_id(model):
        raise ConfigError(f"--model {model} is no folder, and no hub id (owner/name) either; correct the path")
    return checkpoint_folder(expanded(model))


def launch_of(wish: Wish, model: Path, usage: CheckpointUsage | None, out: Path) -> Launch:
    """The shipped configuration with what the checkpoint says over it."""
    told = usage_overrides(usage) if usage is not None else fitting_overrides(model)
    overrides: tuple[Override, ...] = (
        ("model.model", model),
        ("training.output_dir", out / LOGS),
        (f"{ROLLOUT}.rollout_backend", wish.engine),
        *told,
    )
    if holds_adapters(model):
        overrides += (("tuner.train_type", "lora"),)
    return Launch(CONFIG, overrides, server_gpus=wish.server_gpus, server_port=0)


def work_of(wish: Wish, model: Path, out: Path) -> Work:
    """The process that asks the server. It holds no model, unless there are adapters to merge."""
    arguments: tuple[str, ...] = ("--source", str(wish.source), "--out", str(out))
    arguments += ("--classes", wish.classes) if wish.classes else ()
    arguments += ("--plain",) if wish.is_plain else ()
    return Work("predict", "learner.prediction", arguments, "config.predict.yaml", learns=holds_adapters(model))


def usage_overrides(usage: CheckpointUsage) -> Iterator[Override]:
    """What `boxloop.json` says, by the keys of a configuration."""
    yield "global_max_length", usage.max_model_len
    yield "template.system", usage.system
    yield "template.min_pixels", usage.min_pixels
    yield "template.max_pixels", usage.max_pixels
    yield "custom.user_prompt", usage.user_prompt
    yield "custom.object_ordering", usage.object_ordering
    yield f"{ROLLOUT}.max_new_tokens", usage.max_new_tokens
    yield f"{ROLLOUT}.repetition_penalty", usage.repetition_penalty
    if usage.repeat_terminate is not None:
        yield f"{ROLLOUT}.repeat_terminate.enabled", True
        for key, value in usage.repeat_terminate:
            yield f"{ROLLOUT}.repeat_terminate.{key}", value


def fitting_overrides(model: Path) -> Iterator[Override]:
    """The built-in lengths and pixels, cut to what a checkpoint that does not say them can take.

    Raises ConfigError for one without an image processor.
    """
    positions = num_positions(model)
    if positions is not None and positions < LONGEST:
        yield "global_max_length", positions
        yield f"{ROLLOUT}.max_new_tokens", positions // 2
    largest = image_processor_of(model).get("size", {}).get("longest_edge", LARGEST_PX)
    if largest < LARGEST_PX:
        yield "template.max_pixels", None

"""What stands behind a command: its configuration, keys of a launch, and overrides of the configuration."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from compose.launch_plan import Launch
from shared.config.keys import nearest_key
from shared.config.models import Config
from shared.config.overrides import EVALUATION, Override
from shared.config.paths import user_path
from shared.errors import ConfigError

NO_CONFIG = "config=FILE is missing, such as config=configs/demo/stage2.yaml"


def split_config(config: Path | None, arguments: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    """The configuration, by `--config FILE` or `config=FILE`, and the other arguments. Raises ConfigError for none."""
    named = [argument for argument in arguments if argument.startswith("config=")]
    others = tuple(argument for argument in arguments if argument not in named)
    if config is not None:
        return config, others
    if not named:
        raise ConfigError(NO_CONFIG)
    text = named[-1].removeprefix("config=")
    try:
        return user_path(text), others
    except ValueError as error:
        raise ConfigError(f"config={text}: {error}") from None


def parse_launch(
    arguments: Sequence[str], values: Sequence[Override] = (), *, config: Path | None = None, **options: object
) -> Launch:
    """Read `key=value` arguments: the keys of Launch, and overrides of the config; `config` and `options` that are set
    win. `values` are overrides that lie above those of the arguments.

    Raises ConfigError that names every wrong value, or every key that is neither with the nearest one.
    """
    known = {field.name for field in fields(Launch)} - {"overrides"}
    config, arguments = split_config(config, arguments)
    own: dict[str, object] = {"config": config}
    overrides: list[Override] = []
    unknown = []
    for argument in (*arguments, *(f"{key}={value}" for key, value in options.items() if value is not None)):
        key, equals, value = argument.partition("=")
        if equals and key in known:
            own[key] = gpus_in(value) if key.endswith("_gpus") else value
        elif equals and "." not in key and key not in Config.model_fields:
            unknown.append(unknown_key(key, (*known, *Config.model_fields)))
        else:
            overrides.append(argument)
    if unknown:
        raise ConfigError("; ".join(unknown))
    try:
        return TypeAdapter(Launch).validate_python({**own, "overrides": (*overrides, *values)})
    except ValidationError as error:
        wrong = (f"{details['loc'][0]}={details['input']}: {details['msg']}" for details in error.errors())
        raise ConfigError("; ".join(wrong)) from None


def launch_once(
    checkpoint: Path | None, arguments: Sequence[str], *, config: Path | None = None, **options: object
) -> Launch:
    """Of what decodes the validation records once: free ports, and a checkpoint in the place of the model.

    Raises ConfigError for a checkpoint that is no folder, and as `parse_launch`.
    """
    model: tuple[Override, ...] = ()
    if checkpoint is not None:
        if not checkpoint.is_dir():
            raise ConfigError(f"--checkpoint: {checkpoint} is no folder; name a checkpoint-N of a run, or a model's")
        model = (("model.model", checkpoint), ("training.resume_from_checkpoint", None))
    return parse_launch(("server_port=0", *arguments), (*model, *EVALUATION), config=config, **options)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What is said of a key that is nobody's, with the nearest one that is."""
    near = next(iter(get_close_matches(key, sorted(known), n=1)), None) or nearest_key(key)
    return f"{key}: unknown key" + (f"; did you mean `{near}`?" if near else "")


def gpus_in(text: str) -> tuple[str, ...]:
    """The GPUs of a list with commas; none of an empty one."""
    return tuple(part.strip() for part in text.split(",") if part.strip())

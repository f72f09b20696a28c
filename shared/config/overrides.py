"""`section.key=value` arguments to a layer that lies above all files."""

from collections.abc import Sequence
from typing import Any

import yaml

from shared.config.layers import Layer
from shared.errors import ConfigError

ORIGIN = "command line"

EVALUATION = ("training.eval_on_start=true", "training.metrics_port=0")
"""What an evaluation alone sets: it needs records to decode, and leaves a training's port to the training."""


def parse_overrides(overrides: Sequence[str]) -> Layer:
    """Read overrides in order, later ones winning; values are YAML. Raises ConfigError for what is no `key=value`."""
    layer = Layer()
    for override in overrides:
        layer = layer.under(_one(override))
    return layer


def _one(override: str) -> Layer:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(key and key == key.strip() for key in keys):
        raise ConfigError(f"{override!r} is no override; write section.key=value, such as training.max_steps=10")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of override {override!r} is not valid YAML: {error}") from error
    except ValueError as error:  # what looks like a date or a number and is none
        raise ConfigError(f"{path}: {text!r} cannot be read: {error}; put it into quotes") from error
    for key in reversed(keys):
        value = {key: value}
    return Layer(value, {path: ORIGIN})

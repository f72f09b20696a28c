"""`section.key=value` arguments to a layer that lies above all files."""

import types
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml

from shared.config.keys import known_keys
from shared.config.layers import Layer
from shared.errors import ConfigError

ORIGIN = "command line"

Override = str | tuple[str, Any]
"""`section.key=value` as a user writes it, or a key and a value that a program already has."""

EVALUATION: tuple[Override, ...] = (("training.eval_on_start", True), ("training.metrics_port", 0))
"""What an evaluation alone sets: it needs records to decode, and leaves a training's port to the training."""


def parse_overrides(overrides: Sequence[Override]) -> Layer:
    """Read overrides in order, later ones winning. Raises ConfigError for what is no `key=value`.

    A value is YAML, but for keys that hold a text or a path: there it is that text, byte for byte, whatever is in it.
    Of those, keys that may be null or a switch read the bare words `null`, `true` and `false`.
    """
    layer = Layer()
    for override in overrides:
        path, value = _split(override) if isinstance(override, str) else override
        layer = layer.under(_one(path, value))
    return layer


def _split(override: str) -> tuple[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not all(key and key == key.strip() for key in path.split(".")):
        raise ConfigError(f"{override!r} is no override; write section.key=value, such as training.max_steps=10")
    return path, _read(path, text)


def _one(path: str, value: Any) -> Layer:
    value = str(value) if isinstance(value, Path) else value
    for key in reversed(path.split(".")):
        value = {key: value}
    return Layer(value, {path: ORIGIN})


def _read(path: str, text: str) -> Any:
    """What the text behind `path=` means."""
    kinds = _kinds_by_path().get(path, frozenset())
    if kinds & {str, Path}:
        words: dict[str, Any] = {"null": None} if type(None) in kinds else {}
        words |= {"true": True, "false": False} if bool in kinds else {}
        return words.get(text, text)
    if tuple in kinds and not text.lstrip().startswith("["):
        return text  # a list of one
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of override {path}={text!r} is not valid YAML: {error}") from error
    except ValueError as error:  # what looks like a date or a number and is none
        raise ConfigError(f"{path}: {text!r} cannot be read: {error}; put it into quotes") from error


@cache
def _kinds_by_path() -> dict[str, frozenset[object]]:
    """The plain types that each key takes; `tuple` stands for a list of texts."""
    return {key.path: frozenset(_kinds(key.field.annotation)) for key in known_keys()}


def _kinds(annotation: object) -> Iterator[object]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif origin is tuple:
        if str in set(_kinds(get_args(annotation)[0])):
            yield tuple
    else:
        yield annotation

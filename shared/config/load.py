"""From files and overrides to one frozen, checked `Config`, or to one error that names every mistake.

Paths inside a configuration (`train_jsonl`, `output_dir`, `model`) are relative to the working directory of the
process, as everywhere in the Hugging Face world; only `extends` is relative to its file.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shared.config.checks import Problem, problems_of
from shared.config.keys import nearest_key
from shared.config.layers import Layer, read_layers
from shared.config.migration import row_of
from shared.config.models import Config
from shared.config.overrides import Override, parse_overrides
from shared.errors import ConfigError
from shared.whole_file import write_whole


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration and where each written value comes from (`file:line` or the command line)."""

    config: Config
    origins: dict[str, str]


def load_config(path: Path, overrides: Sequence[Override] = ()) -> Config:
    """Load `path` with what it extends, apply `section.key=value` overrides and check everything.

    Raises ConfigError that lists all mistakes at once, each with its key, value, origin and cure.
    """
    return load_with_origins(path, overrides).config


def load_with_origins(path: Path, overrides: Sequence[Override] = ()) -> LoadedConfig:
    """As `load_config`, and keep each value's origin."""
    layer = read_layers(path).under(parse_overrides(overrides))
    try:
        config = Config.model_validate(layer.values)
    except ValidationError as error:
        raise _as_config_error(path, [_problem(details) for details in error.errors()], layer) from None
    problems = problems_of(config, world_size=_world_size())
    if problems:
        raise _as_config_error(path, problems, layer)
    return LoadedConfig(config, layer.origins)


def _world_size() -> int:
    """Learner processes, as launchers such as torchrun say it; unset or empty is one."""
    text = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not text.isdecimal():
        raise ConfigError(f"WORLD_SIZE in the environment is {text!r}, not a number of processes; unset it")
    return int(text)


def save_resolved(config: Config, path: Path) -> None:
    """Write all values, defaults included, so that `load_config(path)` gives an equal `Config`.

    One of an earlier run, with other values, is kept as `config.resolved-1.yaml` and so on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.dump(config.model_dump(mode="json"), Dumper=_ExactDumper, sort_keys=False, allow_unicode=True)
    if path.is_file() and path.read_bytes() != text.encode("utf-8"):
        older = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
        path.rename(next(kept for kept in older if not kept.exists()))
    write_whole(path, text.encode("utf-8"))


class _ExactDumper(yaml.SafeDumper):
    """Writes texts so that they are read back as they were: those with more than plain letters in double quotes."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None if _PLAIN_TEXT.fullmatch(data) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_ExactDumper.add_representer(str, _ExactDumper.represent_str)
_PLAIN_TEXT = re.compile(r"[\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]*")


def _problem(details: ErrorDetails) -> Problem:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"]).removeprefix(".")
    if details["type"] == "extra_forbidden":
        if row := row_of(path):
            return Problem((path,), f"unknown key; {row}")
        near = nearest_key(path)
        return Problem((path,), "unknown key" + (f"; did you mean `{near}`?" if near else ""))
    if details["type"] == "missing":
        return Problem((path,), "is required and missing")
    row = row_of(path)
    there = f" ({row})" if row else ""
    return Problem((path,), f"{details['msg'][0].lower()}{details['msg'][1:]}, got {details['input']!r}{there}")


def _as_config_error(path: Path, problems: Sequence[Problem], layer: Layer) -> ConfigError:
    lines = [f"{path}: {len(problems)} {'problem' if len(problems) == 1 else 'problems'} in the configuration"]
    for problem in problems:
        written = [f"{key} at {layer.origins[key]}" for key in problem.keys if key in layer.origins]
        lines.append(f"  {problem}" + (f"  ({', '.join(written)})" if written else ""))
    return ConfigError("\n".join(lines))

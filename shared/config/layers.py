"""YAML files to one tree of plain values, each of which knows where it was written.

`extends` names one file or several, relative to the file that holds it. They are merged in order, sections key by key
and everything else whole, and the file itself comes last. The same base may be reached twice; a cycle is an error.
"""

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shared.config.shipped import find_config
from shared.errors import ConfigError

Tree = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """Values as nested mappings, and the origin (`file:line`) of every dotted key path in them."""

    values: Tree = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def under(self, later: "Layer") -> "Layer":
        """Merge: values of `later` win; sections are merged key by key, lists and scalars replaced."""
        replaced = set(_replaced_paths(self.values, later.values))
        kept = {path: origin for path, origin in self.origins.items() if not _is_inside(path, replaced)}
        return Layer(_merged(self.values, later.values), kept | later.origins)


def read_layers(path: Path) -> Layer:
    """Read `path`, or the shipped file of that name, and everything it extends.

    Raises ConfigError naming the file and line.
    """
    return _read(find_config(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> Layer:
    resolved = path.resolve()
    if resolved in above:
        cycle = " -> ".join(str(step) for step in (*above[above.index(resolved) :], resolved))
        raise ConfigError(f"{path}: `extends` runs in a circle: {cycle}. Take one of the links out.")
    own = _parse(path)
    extends = own.values.pop("extends", [])
    bases = [extends] if isinstance(extends, str) else extends
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{own.origins['extends']}: `extends` takes a file name or a list of them, got {extends!r}")
    own.origins.pop("extends", None)
    layer = Layer()
    for base in bases:
        layer = layer.under(_read(_base_of(path, base), (*above, resolved)))
    return layer.under(own)


def _base_of(path: Path, base: str) -> Path:
    """The file that `extends` of `path` names: beside it, or a shipped configuration."""
    beside = path.parent / base
    return beside if beside.exists() else find_config(Path(base), beside)


def _parse(path: Path) -> Layer:
    try:
        data = path.read_bytes()
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        node = yaml.compose(data.decode(encoding), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if node is None:
        return Layer()
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path} must hold `key: value` lines at its top level")
    origins = dict(_origins(node, path, ""))
    try:
        values = yaml.SafeLoader("").construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}:{_unreadable_line(node)}: {error}; put the value into quotes") from error
    return Layer(values, origins)


def _unreadable_line(node: yaml.Node) -> int | None:
    """Line of the first value that looks like a date or a number and is none, such as 2024-13-45."""
    if isinstance(node, yaml.ScalarNode):
        try:
            yaml.SafeLoader("").construct_document(node)
        except ValueError:
            return int(node.start_mark.line) + 1
        return None
    inner = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    return next((line for line in map(_unreadable_line, inner) if line is not None), None)


def _origins(node: yaml.MappingNode, path: Path, prefix: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for key, value in node.value:
        here = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{here}: a key must be a word")
        dotted = f"{prefix}{key.value}"
        if dotted in seen:
            raise ConfigError(f"{here}: `{dotted}` stands twice in this file. Keep one of them.")
        seen.add(dotted)
        yield dotted, here
        if isinstance(value, yaml.MappingNode):
            yield from _origins(value, path, f"{dotted}.")


def _merged(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Tree:
    result = dict(earlier)
    for key, value in later.items():
        before = result.get(key)
        result[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def _replaced_paths(earlier: Mapping[str, Any], later: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in later.items():
        before = earlier.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            yield from _replaced_paths(before, value, f"{prefix}{key}.")
        elif before is not None:
            yield f"{prefix}{key}"


def _is_inside(path: str, roots: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:length]) in roots for length in range(1, len(parts) + 1))

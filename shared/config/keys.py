"""Every key the models know, as dotted paths, and the nearest one to a mistake."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import get_args

from pydantic.fields import FieldInfo

from shared.config.models import Config
from shared.config.section import Section


@dataclass(frozen=True)
class Key:
    """One key: its dotted path and pydantic's field; `section` is the model below it, if it has one."""

    path: str
    field: FieldInfo
    section: type[Section] | None


@cache
def known_keys() -> tuple[Key, ...]:
    """All keys in the order of the models; keys inside a list carry `[]` after the list's name."""
    return tuple(_keys(Config, ""))


def nearest_key(unknown: str) -> str | None:
    """The known path most likely meant by `unknown`, or None when nothing is near."""
    paths = [key.path for key in known_keys()]
    parent, _, name = unknown.rpartition(".")
    siblings = {path.rpartition(".")[2]: path for path in paths if path.rpartition(".")[0] == parent}
    if near := get_close_matches(name, siblings, n=1):
        return siblings[near[0]]
    namesakes = [path for path in paths if path.rpartition(".")[2] == name]
    near = get_close_matches(unknown, namesakes, n=1, cutoff=0.0) or get_close_matches(unknown, paths, n=1)
    return near[0] if near else None


def _keys(model: type[Section], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        section, many = _section_of(field.annotation)
        path = f"{prefix}{name}"
        yield Key(path, field, section)
        if section is not None:
            yield from _keys(section, f"{path}[]." if many else f"{path}.")


def _section_of(annotation: object) -> tuple[type[Section] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    inside = [part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, Section)]
    return (inside[0], True) if inside else (None, False)

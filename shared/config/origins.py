"""Each value of a configuration and where it was written."""

from collections.abc import Iterator

from shared.config.load import LoadedConfig

DEFAULT = "default"


def values_with_origins(loaded: LoadedConfig) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every value, defaults included, in the order of the models."""
    values = loaded.config.model_dump(mode="json")
    return [(key, _shown(value), _origin(key, loaded.origins)) for key, value in _leaves("", values)]


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else key, inner)
    else:
        yield path, value


def _origin(key: str, origins: dict[str, str]) -> str:
    """Where `key` was written; a list is written under the keys of its items, too."""
    if key in origins:
        return origins[key]
    return next((origin for name, origin in origins.items() if name.startswith(f"{key}[")), DEFAULT)


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else str(value)

"""What is different about a run that is resumed: keys of the configuration, and files of data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shared.config.models import Config

_OF_THE_START = ("training.resume_from_checkpoint", "custom.extra.rollout_matching.vllm.server.servers")
"""Keys that every start sets anew."""


@dataclass(frozen=True)
class Circumstances:
    """All values of a configuration by their dotted keys, and digests of the files of data by the keys that name them.

    Circumstances(values={"training.seed": 42, …}, data={"custom.train_jsonl": "9f86d0…"})
    """

    values: Mapping[str, Any]
    data: Mapping[str, str]

    @classmethod
    def of(cls, config: Config, data: Mapping[str, str]) -> "Circumstances":
        return cls(dict(_leaves("", config.model_dump(mode="json"))), data)


def changes_between(then: Circumstances, now: Circumstances) -> Iterator[str]:
    """Each key with both values, and each file whose content is another; nothing when nothing changed."""
    for key in dict.fromkeys((*then.values, *now.values)):
        before, after = then.values.get(key), now.values.get(key)
        if before != after and key not in _OF_THE_START:
            yield f"{key}: {before} -> {after}"
    for key, digest in now.data.items():
        if then.data.get(key, digest) != digest:
            yield f"{key}: the content of {now.values.get(key)} is another"


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else key, inner)
    else:
        yield path, value

"""The families that can be trained and decoded, by the `model_type` of a checkpoint's config.json."""

import json
from collections.abc import Mapping
from pathlib import Path

from shared.errors import ConfigError
from shared.families.facts import FamilyFacts
from shared.families.qwen3_vl import QWEN3_VL

FACTS: Mapping[str, FamilyFacts] = {facts.model_type: facts for facts in (QWEN3_VL,)}


def facts_of(model_type: object, model: str | Path) -> FamilyFacts:
    """The facts of the family `model_type`, which the checkpoint `model` says that it is of.

    Raises ConfigError for any other family than those of FACTS.
    """
    found = FACTS.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise ConfigError(f"model.model: {model} is a {model_type} checkpoint; give one of {', '.join(FACTS)}")
    return found


def facts_in(folder: str | Path) -> FamilyFacts:
    """The facts of the checkpoint in `folder`. Raises ConfigError without a config.json, and for an unknown family."""
    try:
        model_type = json.loads((Path(folder) / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"model.model: {folder} has no readable config.json: {error}") from error
    return facts_of(model_type, folder)

"""A family is known by the `model_type` of a checkpoint, on both sides alike."""

import json
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.families.qwen3_vl import QWEN3_VL
from shared.families.table import FACTS, facts_in, facts_of


def test_a_checkpoint_names_its_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    assert facts_in(tmp_path) is QWEN3_VL


@pytest.mark.parametrize("model_type", ["llava", None, ["qwen3_vl"]])
def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path: Path, model_type: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ConfigError) as caught:
        facts_in(tmp_path)
    assert str(caught.value) == f"model.model: {tmp_path} is a {model_type} checkpoint; give one of qwen3_vl"


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"model\.model: {tmp_path} has no readable config\.json"):
        facts_in(tmp_path)


def test_the_name_of_a_family_is_its_key() -> None:
    assert all(facts_of(name, "a").model_type == name for name in FACTS)

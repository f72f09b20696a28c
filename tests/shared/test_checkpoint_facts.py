"""What adapters build on."""

import json
from pathlib import Path

import pytest

from shared.checkpoint_facts import base_model, holds_adapters
from shared.errors import ConfigError


def adapters_on(folder: Path, base: object) -> str:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return str(folder)


def test_a_whole_model_is_its_own_base(tmp_path: Path) -> None:
    assert base_model("some/hub-id") == "some/hub-id"
    assert base_model(str(tmp_path)) == str(tmp_path)
    assert not holds_adapters(tmp_path)


@pytest.mark.parametrize("base", ["some/hub-id", "folder"])
def test_adapters_name_theirs(tmp_path: Path, base: str) -> None:
    (tmp_path / "folder").mkdir()
    wanted = str(tmp_path / base) if base == "folder" else base
    assert base_model(adapters_on(tmp_path, wanted)) == wanted
    assert holds_adapters(tmp_path)


@pytest.mark.parametrize("base", [None, "", "/no/such/folder"])
def test_a_base_that_is_gone_is_an_error_with_the_file(tmp_path: Path, base: object) -> None:
    with pytest.raises(ConfigError, match=r"adapter_config.json builds on .* not there"):
        base_model(adapters_on(tmp_path, base))


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        base_model(str(tmp_path))

"""Configurations that travel with the package."""

from pathlib import Path

import pytest

from shared.config.layers import read_layers
from shared.config.shipped import find_config, shipped_configs
from shared.errors import ConfigError

NAME = "configs/stage2_ab/smoke/ab_mixed.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder without configurations."""
    monkeypatch.chdir(tmp_path)
    find_config.cache_clear()


def test_a_name_that_is_not_here_means_the_shipped_one_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert find_config(Path(NAME)) == shipped_configs() / "stage2_ab" / "smoke" / "ab_mixed.yaml"
    assert caplog.text.count("the one that Boxloop ships is read") == 1


def test_a_file_that_is_here_goes_first(tmp_path: Path) -> None:
    own = tmp_path / NAME
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert find_config(Path(NAME)) == Path(NAME)


def test_ones_own_file_may_extend_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"extends: {NAME}\nglobal_max_length: 77\n")
    values = read_layers(tmp_path / "own.yaml").values
    assert values["global_max_length"] == 77
    assert values["custom"]["trainer_variant"] == "stage2_ab_training"


@pytest.mark.parametrize("name", ["configs/none.yaml", "other/stage2_ab/smoke/ab_mixed.yaml", "none.yaml"])
def test_what_is_nowhere_is_named_as_it_was_given(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot read the config {name}"):
        read_layers(Path(name))
    (tmp_path / "own.yaml").write_text(f"extends: {name}\n")
    with pytest.raises(ConfigError, match=rf"cannot read the config {tmp_path}/{name}"):
        read_layers(tmp_path / "own.yaml")

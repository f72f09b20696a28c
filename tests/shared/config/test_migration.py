"""What people bring from CoordExp and ms-swift: accepted, or refused by its row of the table."""

from pathlib import Path

import pytest

from shared.config.advice import advice_for
from shared.config.keys import known_keys
from shared.config.load import load_config
from shared.config.migration import ROWS, migration_page
from shared.errors import ConfigError

ROOT = Path(__file__).parents[3]
MIXED = ROOT / "configs" / "stage2_ab" / "smoke" / "ab_mixed.yaml"
SERVERS = "custom.extra.rollout_matching.vllm.server.servers"


def test_the_page_is_what_the_table_says() -> None:
    assert (ROOT / "docs" / "migrating.md").read_text() == migration_page(), "run: make docs"


def test_renamed_and_dropped_keys_are_unknown_here_and_differing_ones_known() -> None:
    known = {key.path for key in known_keys()}
    for path, row in ROWS.items():
        assert (path in known) is (row.fate == "differs"), path


@pytest.mark.parametrize("path", [path for path, row in ROWS.items() if row.fate != "differs"])
def test_a_refused_key_names_its_row(path: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(MIXED, [f"{path}=1"])
    assert f"{path}: unknown key; {ROWS[path].fate}, see docs/migrating.md: {ROWS[path].here}" in str(refused.value)


@pytest.mark.parametrize(
    "override",
    ["custom.extra.rollout_matching.top_k=-1", "custom.extra.rollout_matching.vllm.server.infer_timeout_s=0",
     "custom.extra.rollout_matching.repeat_terminate.max_object_keys=null"],
)  # fmt: skip
def test_a_value_that_meant_something_there_names_its_row(override: str) -> None:
    with pytest.raises(ConfigError, match=r"differs, see docs/migrating\.md"):
        load_config(MIXED, [override])


@pytest.mark.reported("group_port of ms-swift")
def test_a_group_port_is_accepted_with_a_warning() -> None:
    config = load_config(MIXED, [f"{SERVERS}=[{{base_url: http://127.0.0.1:8000, group_port: 51216}}]"])
    (warning,) = advice_for(config)
    assert str(warning).startswith(f"{SERVERS}[0].group_port: 51216 is not used: differs, see docs/migrating.md")


def test_a_small_number_of_answers_in_flight_prints_its_row() -> None:
    (warning,) = advice_for(load_config(MIXED, ["custom.extra.stage2_ab.channel_b.rollout_decode_batch_size=2"]))
    assert "docs/migrating.md" in str(warning)
    assert "not the size of a chunk" in str(warning)


def test_dora_alone_means_adapters() -> None:
    assert load_config(MIXED, ["tuner.use_dora=true"]).tuner.train_type == "lora"
    with pytest.raises(ConfigError, match="got full"):
        load_config(MIXED, ["tuner.use_dora=true", "tuner.train_type=full"])

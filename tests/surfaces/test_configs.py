"""Every configuration that ships loads, and says what its name promises."""

from pathlib import Path

import pytest

from shared.config.advice import advice_for
from shared.config.load import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if path.name != "base.yaml")


def test_there_are_configs_for_the_demo_both_stages_and_smoke() -> None:
    assert {Path(run).parent.as_posix() for run in RUNS} >= {"demo", "stage1", "stage2_ab/prod", "stage2_ab/smoke"}


@pytest.mark.parametrize(("name", "train_type"), [("full", "full"), ("dora", "lora")])
def test_stage_1_trains_the_new_rows_and_needs_no_server(name: str, train_type: str) -> None:
    config = load_config(CONFIGS / "stage1" / f"qwen3_vl_{name}.yaml")
    assert config.is_stage_1
    assert not config.decodes
    assert config.tuner.coordinate_rows
    assert config.tuner.train_type == train_type
    assert advice_for(config) == []


@pytest.mark.parametrize("run", RUNS)
def test_every_shipped_config_loads(run: str) -> None:
    config = load_config(CONFIGS / run)
    expected = {"ab_mixed": ("A", "A", "B"), "a_only": ("A",), "b_only": ("B",), "control": ("A",), "rewards": ("R",)}
    assert config.stage2.schedule.pattern == expected.get(Path(run).stem, config.stage2.schedule.pattern)


def test_no_two_shipped_runs_write_to_one_folder() -> None:
    """In containers it is RUN_DIR of the run's `.env`, mounted at one place."""
    runs = [run for run in RUNS if not run.startswith("containers/")]
    folders = [load_config(CONFIGS / run).training.output_dir for run in runs]
    assert len(set(folders)) == len(runs)

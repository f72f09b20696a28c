"""Every configuration that ships loads, and says what its name promises."""

from pathlib import Path

import pytest

from shared.config.load import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if path.name != "base.yaml")


def test_there_are_configs_for_the_demo_production_and_smoke() -> None:
    assert {Path(run).parent.as_posix() for run in RUNS} >= {"demo", "stage2_ab/prod", "stage2_ab/smoke"}


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

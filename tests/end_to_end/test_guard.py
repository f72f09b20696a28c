"""The guard in real runs: a tiny model that learns from its own answers alone, decoded by a real engine."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from rich.console import Console

from learner.build import open_run
from learner.reporting.collapse_guard import RunLeftItsBands
from learner.train import train
from rollout_server.settings import ServerSettings, limits_for
from shared.config.load import load_config
from tests.end_to_end.faults import PATTERN, QUIET, ROLLOUT, records_of

STAGE2 = "custom.extra.stage2_ab"
ANSWERS_ALONE = (
    *QUIET,
    f"{PATTERN}=[B]",
    f"{STAGE2}.guard.window=4",
    f"{STAGE2}.guard.action=stop",
    f"{ROLLOUT}.max_new_tokens=150",
    "training.effective_batch_size=16",
    "training.per_device_train_batch_size=16",
    "training.save_only_model=true",
    "training.lr_scheduler_type=constant",
    "training.learning_rate=0.0005",
)
BOTH_KNOBS = (f"{STAGE2}.prefix_structure_ce_weight=1", f"{STAGE2}.prefix_extras=drop")
NEITHER = (f"{STAGE2}.prefix_structure_ce_weight=0", f"{STAGE2}.prefix_extras=keep")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [line for line in records_of(folder / "run") if "warning" not in line]


@pytest.mark.slow
@pytest.mark.very_slow
async def test_it_stops_a_run_that_collapses_and_leaves_its_healthy_twin_alone(
    serving: Any, config_for: Callable[[Path, Path], Path], stage1: Path, tmp_path: Path
) -> None:
    """Both start from one model that answers in the format, and differ in nothing but the two knobs on the prefix.

    Without them every object that was missed is written behind all that was predicted, so answers grow until they run
    into the token limit.
    """

    async def learn_from_answers(name: str, num_steps: int, *knobs: str) -> None:
        weights = tmp_path / name / "weights"
        weights.mkdir(parents=True)
        with serving(ServerSettings(str(stage1), "hf", limits_for(512, 16), weights_root=weights)) as running:
            servers = f"{ROLLOUT}.vllm.server.servers=[{{base_url: '{running.url}'}}]"
            where = (servers, f"{ROLLOUT}.vllm.sync.weights_root={weights}", f"training.max_steps={num_steps}")
            config = load_config(config_for(tmp_path / name, stage1), (*ANSWERS_ALONE, *where, *knobs))
            with anyio.fail_after(200):
                async with open_run(config, Console(file=io.StringIO()), config.training.output_dir) as run:
                    await train(run)

    with pytest.raises(RunLeftItsBands, match="prefix_extras: drop"):
        await learn_from_answers("collapsing", 30, *NEITHER)
    first, *_, last = steps_of(tmp_path / "collapsing")
    await learn_from_answers("healthy", last["step"], *BOTH_KNOBS)  # by then the other had been stopped
    healthy = steps_of(tmp_path / "healthy")
    assert [line["step"] for line in healthy] == list(range(1, last["step"] + 1))
    assert first["rollout/parse_truncated_rate"] == healthy[0]["rollout/parse_truncated_rate"]
    assert first["rollout/parse_truncated_rate"] <= 0.1 < last["rollout/parse_truncated_rate"]

"""The guard in real runs: a tiny model that learns from its own answers alone, decoded by a real engine."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from rich.console import Console

from learner.build import open_run
from learner.data.shapes import render_shapes
from learner.guard import RunLeftItsBands
from learner.train import train
from rollout_server.settings import ServerSettings, limits_for
from shared.config.models import Config

STAGE2 = "custom.extra.stage2_ab"
ROLLOUTS = "custom.extra.rollout_matching"
COMMON = (
    "template.min_pixels=16384",
    "template.max_pixels=16384",
    "training.optim=muon",
    "training.logging_steps=1",
    "training.effective_batch_size=16",
    "training.per_device_train_batch_size=16",
    "training.save_only_model=true",
    f"{ROLLOUTS}.deterministic=true",
)
ANSWERS_ALONE = (
    f"{STAGE2}.schedule.pattern=[B]",
    f"{STAGE2}.guard.window=4",
    f"{STAGE2}.guard.action=stop",
    f"{ROLLOUTS}.max_new_tokens=150",
    "training.lr_scheduler_type=constant",
    "training.learning_rate=0.001",
)
BOTH_KNOBS = (f"{STAGE2}.prefix_structure_ce_weight=1", f"{STAGE2}.prefix_extras=drop")


async def trained(config: Config) -> None:
    with anyio.fail_after(200):
        async with open_run(config, Console(file=io.StringIO()), config.training.output_dir) as run:
            await train(run)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    lines = [orjson.loads(line) for line in (folder / "logging.jsonl").read_bytes().splitlines()]
    return [line for line in lines if "warning" not in line]


@pytest.mark.slow
async def test_it_stops_a_run_that_collapses_and_leaves_its_healthy_twin_alone(
    serving: Any, config_of: Callable[..., Config], checkpoint: Path, tmp_path: Path
) -> None:
    """Both start from one model that answers in the format, and differ in nothing but the two knobs on the prefix.

    Without them every object that was missed is written behind all that was predicted, so answers grow until they run
    into the token limit.
    """
    assert sum(render_shapes(tmp_path, train=256, val=1, seed=1, num_workers=1)) == 257
    (tmp_path / "weights").mkdir()
    common = (*COMMON, f"custom.train_jsonl={tmp_path / 'train.jsonl'}")
    stage1 = (
        "custom.trainer_variant=stage1_sft",
        "training.max_steps=200",
        "training.learning_rate=0.002",
        "training.lr_scheduler_type=linear",
    )
    await trained(config_of(*common, *stage1, f"training.output_dir={tmp_path / 'stage1'}"))
    start = tmp_path / "stage1" / "checkpoint-200"

    async def learn_from_answers(name: str, num_steps: int, *knobs: str) -> None:
        settings = ServerSettings(str(start), "hf", limits_for(512, 16), weights_root=tmp_path / "weights")
        with serving(settings) as running:
            servers = f"{ROLLOUTS}.vllm.server.servers=[{{base_url: '{running.url}'}}]"
            where = (f"model.model={start}", f"training.output_dir={tmp_path / name}", servers)
            await trained(config_of(*common, *ANSWERS_ALONE, *where, f"training.max_steps={num_steps}", *knobs))

    with pytest.raises(RunLeftItsBands, match="prefix_extras: drop"):
        await learn_from_answers("collapsing", 30)
    first, *_, last = steps_of(tmp_path / "collapsing")
    await learn_from_answers("healthy", last["step"], *BOTH_KNOBS)  # by then the other had been stopped
    healthy = steps_of(tmp_path / "healthy")
    assert [line["step"] for line in healthy] == list(range(1, last["step"] + 1))
    assert first["rollout/parse_truncated_rate"] == healthy[0]["rollout/parse_truncated_rate"]
    assert first["rollout/parse_truncated_rate"] <= 0.1 < last["rollout/parse_truncated_rate"]

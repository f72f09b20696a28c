"""A DoRA run by two processes: resumed, and scored from its checkpoint of adapters."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.very_slow]

DORA = (
    "server_port=0", "tuner.train_type=lora", "tuner.use_dora=true", "tuner.lora_dropout=0.1", "training.optim=adamw",
    "custom.extra.stage2_ab.schedule.pattern=[A,B]", "training.max_steps=4", "training.save_steps=2",
    "training.learning_rate=0.02", "training.eval_steps=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def dora(config_of, start_once, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run; treat its folder as read-only."""
    folder = tmp_path_factory.mktemp("dora")
    return start_once(["up", f"config={config_of(folder)}", *DORA], folder / "run")


def losses(run: Any) -> list[float]:
    return [record["loss"] for record in run.log() if "channel" in record]


def test_a_resumed_run_ends_with_the_adapters_of_one_that_was_never_stopped(
    dora, start, config_of, tmp_path: Path
) -> None:
    config = config_of(tmp_path)
    shutil.copytree(dora.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-4"))
    resumed = start("up", f"config={config}", *DORA, "training.resume_from_checkpoint=true")
    assert resumed.end() == 0, resumed.told
    ours, theirs = (
        load_file(run / "checkpoint-4" / "adapter_model.safetensors") for run in (dora.folder, resumed.folder)
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []
    assert losses(resumed) == losses(dora)


def test_a_checkpoint_of_adapters_scores_as_the_run_did(dora, start, config_of, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    overrides = [each for each in DORA if "=" in each and not each.startswith("server_port")]
    scored = start("eval", "--config", config, "--checkpoint", dora.folder / "checkpoint-4", *overrides)
    assert scored.end() == 0, scored.told
    record = json.loads((tmp_path / "run" / "evaluation" / "logging.jsonl").read_text())
    before, after = (each for each in dora.log() if "channel" not in each)
    assert {**record, "step": 4} == after
    assert {**before, "step": 4} != after

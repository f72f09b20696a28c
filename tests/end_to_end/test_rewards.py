"""Rewards in a run of two processes: every record is answered several times, paid, and the run goes on where it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

REWARD = "custom.extra.stage2_ab.reward"
PAID = (
    "server_port=0", "custom.extra.stage2_ab.schedule.pattern=[A,R]", "training.max_steps=4", "training.save_steps=2",
    "training.eval_strategy=no", "training.eval_on_start=false", f"{REWARD}.samples_per_record=3",
    f"{REWARD}.iou_min=0.1", "custom.extra.rollout_matching.deterministic=true", "training.learning_rate=0.001",
)  # fmt: skip


@pytest.fixture(scope="module")
def paid(config_of, start_once, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run; treat its folder as read-only."""
    folder = tmp_path_factory.mktemp("paid")
    return start_once(["up", f"config={config_of(folder)}", *PAID], folder / "run")


def steps_of(run: Any) -> list[dict[str, Any]]:
    return [record for record in run.log() if "channel" in record]


def test_every_record_of_a_step_has_its_answers_and_is_counted_once(paid) -> None:
    plain, first, _, second = steps_of(paid)
    assert [step["channel"] for step in (plain, first, second)] == ["A", "R", "R"]
    ledger = [json.loads(line) for line in (paid.folder / "ledger.jsonl").read_text().splitlines()]
    per_step = len(ledger[0]["trained"])
    for step, line in zip((first, second), (ledger[1], ledger[3]), strict=True):
        assert step["stage2/raw_rollouts"] == 3 * per_step
        assert (step["stage2/channel_r"], step["stage2/channel_a"]) == (1, 0)
        assert len(line["trained"]) + len(line.get("silent", [])) + len(line["lost"]) == per_step
        assert {"reward/mean", "reward/price", "reward/soft_f1", "reward/entropy", "loss/reward"} <= step.keys()
        assert step["reward/importance_mean"] == 1.0  # hf at lag 0: the policy that samples is the one that learns
        assert "loss/ce" not in step
    assert "reward/mean" not in plain
    assert any(line["trained"] for line in (ledger[1], ledger[3])), "no record taught anything"


@pytest.mark.very_slow
def test_a_resumed_run_goes_on_with_the_price_it_had_to_the_same_weights(
    paid, start, config_of, tmp_path: Path
) -> None:
    config = config_of(tmp_path)
    shutil.copytree(paid.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-4"))
    resumed = start("up", f"config={config}", *PAID, "training.resume_from_checkpoint=true")
    assert resumed.end() == 0, resumed.told
    ours, theirs = (load_file(run / "checkpoint-4" / "model.safetensors") for run in (paid.folder, resumed.folder))
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []
    assert steps_of(resumed)[-1]["reward/price"] == steps_of(paid)[-1]["reward/price"] > 0
    state = json.loads((paid.folder / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["reward"]["tokens"] > 0

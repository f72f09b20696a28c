"""Six optimizer steps A, A, B, A, A, B by two processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from learner.families.load import load_tokenizer
from shared.config.load import load_config
from shared.metrics import METRICS, REASON, metric_named

pytestmark = pytest.mark.slow

B_AT_TIMES = ("rollout/precision", "rollout/matched_maskiou_mean", "rollout/parse_obj_valid_frac")
"""Ratios over predictions: absent where there are none."""
PIPELINE_OFF = "custom.extra.stage2_ab.channel_b.enable_pipeline=false"


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def steps(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if "channel" in record]


def test_the_run_directory_holds_what_was_promised(six_steps) -> None:
    names = {path.name for path in six_steps.folder.iterdir()}
    promised = {"config.resolved.yaml", "logging.jsonl", "ledger.jsonl", "checkpoint-6", "pictures", "server-0.log"}
    assert promised | {"learner.log"} <= names
    assert not [name for name in names if "partial" in name]
    load_config(six_steps.folder / "config.resolved.yaml")
    pictures = {path.suffix for path in (six_steps.folder / "pictures").iterdir()}
    assert pictures == {".json", ".png"}


def test_every_metric_is_logged_on_the_steps_it_belongs_to(six_steps) -> None:
    records = steps(six_steps.log())
    assert [record["channel"] for record in records] == ["A", "A", "B", "A", "A", "B"]
    on_all = {name for name, metric in METRICS.items() if metric.steps == "all"}
    on_b = {name for name, metric in METRICS.items() if "B" in metric.steps and REASON not in name}
    for record in records:
        names = record.keys() - {"step", "channel"}
        if record["channel"] == "A":
            assert names == on_all
            assert record["time/rollout_generate_s"] == 0
        else:
            dropped = {name for name in names if name not in METRICS and metric_named(name)}
            assert names - dropped <= on_all | on_b
            assert names >= on_all | on_b - set(B_AT_TIMES)


def test_numbers_are_what_a_run_of_this_size_must_give(six_steps) -> None:
    records = steps(six_steps.log())
    for record in records:
        for side in ("share/learner_", "share/server_"):
            assert sum(value for name, value in record.items() if name.startswith(side)) == pytest.approx(1, abs=1e-6)
        assert 0 < record["packing/post_rollout_fill"] <= 1
        assert record["packing/num_packs"] * record["packing/post_rollout_segments"] == pytest.approx(6)
        assert 0 < record["loss/coord_mass"] <= 1
    for record in records[2::3]:
        assert record["stage2/raw_rollouts"] == 6
        assert record["stage2/policy_lag"] == 0
        assert record["rollout/sample_valid_pred_rate"] > 0
        assert (
            record["rollout/matched_for_supervision"] + record["rollout/fn_appended"]
            == 6 * record["rollout/gt_objects"]
        )
        assert record["time/sync_s"] > 0


def test_every_record_is_trained_once(six_steps) -> None:
    trained = [name for line in six_steps.log("ledger.jsonl") for name in line["trained"]]
    assert len(trained) == len(set(trained)) == 36


def test_the_checkpoint_is_a_plain_one(six_steps, stage1: Path) -> None:
    folder = six_steps.folder / "checkpoint-6"
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    before = Qwen3VLForConditionalGeneration.from_pretrained(stage1)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before.state_dict()[name])]
    assert len(changed) > 20
    assert load_tokenizer(str(folder)).convert_tokens_to_ids("<|coord_999|>") is not None


def test_nothing_is_left_behind(six_steps) -> None:
    assert six_steps.pids() == []
    assert "Traceback" not in six_steps.told


def test_learning_while_decoding_changes_no_weight(six_steps, start, config_of, tmp_path: Path) -> None:
    off = start("up", f"config={config_of(tmp_path)}", "server_port=0", PIPELINE_OFF)
    assert off.end() == 0, off.told
    assert_same(weights(six_steps.folder / "checkpoint-6"), weights(off.folder / "checkpoint-6"))


def test_a_resumed_run_ends_as_one_that_was_never_stopped(
    six_steps, start, config_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    config = config_of(tmp_path)
    shutil.copytree(six_steps.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-6"))
    resumed = start("up", f"config={config}", "server_port=0", "training.resume_from_checkpoint=true")
    assert resumed.end() == 0, resumed.told
    assert_same(weights(six_steps.folder / "checkpoint-6"), weights(tmp_path / "run" / "checkpoint-6"))
    assert [record["step"] for record in steps(resumed.log())] == [1, 2, 3, 4, 5, 6]
    losses = [[record["loss"] for record in steps(run.log())] for run in (six_steps, resumed)]
    assert losses[0] == losses[1]


def test_two_servers_share_the_work(start, config_of: Callable[[Path], Path], tmp_path: Path) -> None:
    run = start(
        "up", f"config={config_of(tmp_path)}", "server_port=0", "cpu_servers=2", "training.max_steps=1",
        "custom.extra.stage2_ab.schedule.pattern=[B]",
    )  # fmt: skip
    assert run.end() == 0, run.told
    assert {"server-0.log", "server-1.log"} <= {path.name for path in run.folder.iterdir()}
    (record,) = steps(run.log())
    assert record["stage2/raw_rollouts"] == 6


def test_an_evaluation_leaves_the_run_as_it_is(six_steps, start, config_of, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    shutil.copytree(six_steps.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    checkpoint = six_steps.folder / "checkpoint-6"
    scored = start("eval", "--config", config, "--checkpoint", checkpoint)
    assert scored.end() == 0, scored.told
    for name in ("logging.jsonl", "ledger.jsonl", "config.resolved.yaml"):
        assert (tmp_path / "run" / name).read_bytes() == (six_steps.folder / name).read_bytes()
    evaluation = tmp_path / "run" / "evaluation"
    record = json.loads((evaluation / "logging.jsonl").read_text())
    assert {**record, "step": 6} == six_steps.log()[-1]
    assert len(list((evaluation / "pictures").glob("eval-*.png"))) == 8
    scores = json.loads((evaluation / "scores.json").read_text())
    assert {**scores["metrics"], "step": 0} == record
    assert sum(each["gt_objects"] for each in scores["classes"]) == record["eval_rollout_gt_objects"]
    assert "F1, equal desc" in scored.told


def test_evaluations_have_every_metric_of_their_own(six_steps) -> None:
    before, after = (record for record in six_steps.log() if "channel" not in record)
    names = {name for name, metric in METRICS.items() if metric.steps == "eval"}
    for record in (before, after):
        always = {name for name in names if "_coco_" not in name} - {"eval_rollout_matched_maskiou_mean"}
        assert always <= record.keys() - {"step"} <= names
        assert "eval_coco_ap" in record
    assert (before["step"], after["step"]) == (0, 6)
    assert before["eval_rollout_gt_objects"] == after["eval_rollout_gt_objects"] > 8

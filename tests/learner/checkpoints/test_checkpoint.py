"""Checkpoints: plain Hugging Face folders that a run goes on from."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from learner.channels.last_pass import LastPass, SinglePass
from learner.channels.reward_averages import RewardAverages
from learner.checkpoints.checkpoint import (
    Checkpoints,
    Followed,
    checkpoints_in,
    latest_checkpoint,
    read_state,
    set_aside_later,
)
from learner.families.load import load_model, load_tokenizer
from learner.plan.progress import Progress
from learner.plan.schedule import Channel
from learner.reporting.collapse_guard import Guard
from learner.reporting.step_report import StepRecord
from learner.reporting.tallies import Tallies
from learner.training.learner import Learner
from learner.training.optim import StepOptimizer
from shared.checkpoint_facts import USAGE_FILE
from shared.checkpoint_usage import CheckpointUsage, read_usage, save_usage
from shared.config.stage2 import GuardSection, RewardSection, Stage2Section
from shared.config.training import TrainingSection
from shared.errors import DataError

NUM_STEPS = 6
BEST_BY = "eval_rollout_f1_desc_iou50_95"
"""The default of metric_for_best_model."""
NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


class Trained:
    """A learner with its checkpoints, for `NUM_STEPS` steps on one made-up record after another."""

    def __init__(self, bench: Any, folder: Path, usage: CheckpointUsage | None = None, **keys: Any) -> None:
        training = TrainingSection(
            output_dir=folder, learning_rate=1e-3, optim="muon", lr_scheduler_type="linear", **keys
        )
        self.bench, self.training = bench, training
        self.optimizer = StepOptimizer(bench.loaded, training, NUM_STEPS)
        self.learner = Learner(bench.loaded, self.optimizer, pad_token_id=bench.tokenizer.pad_token_id)
        self.guard, self.averages = Guard(GuardSection(window=2)), RewardAverages(RewardSection())
        self.followed = Followed(self.guard, self.averages, answer_weight=42.0)
        self.checkpoints = Checkpoints(bench.loaded, self.optimizer, self.followed, training, "digest", usage=usage)
        self.progress = Progress(num_steps=NUM_STEPS)

    def train(self, steps: int, pack_of: Any, totals_of: Any) -> list[float]:
        losses = []
        objective = SinglePass(LastPass(Stage2Section(), self.bench.coordinate_ids))
        for _ in range(steps):
            sample = self.bench.sample(self.progress.step, 2)
            self.learner.accumulate(self.learner.lay_out(pack_of(sample)), objective, totals_of(sample))
            losses.append(self.learner.update().loss)
            self.progress.step += 1
            self.progress.cursor += 1
            self.progress.epoch = self.progress.step / 2
        return losses


@pytest.fixture
def trained(workbench: Any, tmp_path: Path) -> Trained:
    return Trained(workbench, tmp_path)


def test_a_checkpoint_is_a_plain_hugging_face_folder(trained: Trained, pack_of: Any, step_totals_of: Any) -> None:
    trained.train(1, pack_of, step_totals_of)
    folder = trained.checkpoints.save(trained.progress)
    again, ours = AutoModelForImageTextToText.from_pretrained(folder), trained.bench.loaded.model
    assert again.state_dict().keys() == ours.state_dict().keys()
    assert all(again.state_dict()[name].equal(tensor) for name, tensor in ours.state_dict().items())
    assert "matmul" not in (folder / "config.json").read_text()
    assert load_tokenizer(str(folder)).get_vocab() == trained.bench.tokenizer.get_vocab()
    processor = "preprocessor_config.json"
    assert (folder / processor).read_bytes() == (trained.bench.loaded.folder / processor).read_bytes()


def test_a_resumed_run_ends_with_the_losses_of_one_that_was_not_stopped(
    trained: Trained, workbench_of: Callable[..., Any], tmp_path: Path, pack_of: Any, step_totals_of: Any
) -> None:
    trained.train(3, pack_of, step_totals_of)
    folder = trained.checkpoints.save(trained.progress)
    expected = trained.train(3, pack_of, step_totals_of)

    bench = workbench_of()
    bench.loaded.model.load_state_dict(load_model(str(folder), dtype="float32").model.state_dict())
    torch.manual_seed(99)
    resumed = Trained(bench, tmp_path)
    state = resumed.checkpoints.restore(folder)
    resumed.progress.step, resumed.progress.cursor = state.global_step, state.cursor
    assert resumed.optimizer.learning_rate == pytest.approx(1e-3 * 3 / NUM_STEPS)
    assert resumed.train(3, pack_of, step_totals_of) == expected


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=NEEDS_GPU)])
def test_optimizer_state_goes_where_a_fresh_optimizer_would_put_it(trained: Trained, device: str) -> None:
    """AdamW's fused kernel wants its step counts beside the weights; on a CPU that would not show."""
    for parameter in trained.optimizer.parameters:
        parameter.grad = torch.ones_like(parameter)
    trained.optimizer.step()
    folder = trained.checkpoints.save(trained.progress)
    model = trained.bench.loaded.model.to(device)
    model.tie_weights()  # moving to the meta device unties
    optimizer = StepOptimizer(trained.bench.loaded, trained.training, NUM_STEPS)
    resumed = Checkpoints(trained.bench.loaded, optimizer, trained.followed, trained.training, "digest")
    resumed.restore(folder)
    for each in optimizer.optimizers.values():
        assert len(each.state) == sum(len(group["params"]) for group in each.param_groups)
        assert {tensor.device.type for state in each.state.values() for tensor in state.values()} == {device}
    if device == "cuda":
        for parameter in optimizer.parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


def test_a_resumed_run_keeps_what_its_loss_is_divided_by_and_its_price(trained: Trained, tmp_path: Path) -> None:
    step = Tallies()
    step.count("reward/precision", 4.0, 10)
    step.count("reward/annotated", 15.0)
    step.count("reward/advantage_variance", 9.0, 100)
    trained.averages.follow(step)
    folder = trained.checkpoints.save(trained.progress)
    assert read_state(folder).answer_weight == 42.0
    resumed = Trained(trained.bench, tmp_path)
    resumed.checkpoints.restore(folder)
    assert resumed.averages.price == trained.averages.price == pytest.approx(4 / 25)
    assert resumed.averages.scale == trained.averages.scale == pytest.approx(0.3)


def test_the_guard_goes_on_with_the_window_it_had(trained: Trained, tmp_path: Path) -> None:
    trained.guard.watch(b_step(valid=0.5))
    folder = trained.checkpoints.save(trained.progress)
    resumed = Trained(trained.bench, tmp_path)
    resumed.checkpoints.restore(folder)
    assert "sample_sound_rate is 0.50" in (resumed.guard.watch(b_step(valid=0.5)) or "")

    folder = resumed.checkpoints.save(resumed.progress)
    again = Trained(trained.bench, tmp_path)
    again.checkpoints.restore(folder)
    assert again.guard.watch(b_step(valid=0.5)) is None  # it was told before


def b_step(valid: float) -> StepRecord:
    tallies = Tallies()
    tallies.count("rollout/sample_sound_rate", 10 * valid, 10)
    return StepRecord(0, Channel.B, 1.0, tallies, learned=(), lost=(), trained=())


def test_random_numbers_go_on_where_they_stopped(trained: Trained) -> None:
    folder = trained.checkpoints.save(trained.progress)
    expected = torch.rand(4)
    torch.manual_seed(99)
    trained.checkpoints.restore(folder)
    assert torch.rand(4).equal(expected)


@pytest.mark.parametrize("damage", ["cut short", "gone", "no state"])
def test_a_broken_checkpoint_is_skipped_for_the_one_before(
    trained: Trained, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    older = trained.checkpoints.save(trained.progress)
    trained.progress.step = 5
    newer = trained.checkpoints.save(trained.progress)
    assert latest_checkpoint(trained.training.output_dir) == newer
    weights = newer / "model.safetensors"
    match damage:
        case "cut short":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "gone":
            weights.unlink()
        case "no state":
            (newer / "trainer_state.json").write_text("{")
    assert latest_checkpoint(trained.training.output_dir) == older
    assert str(newer) in caplog.text


def test_a_checkpoint_that_was_cut_off_while_written_does_not_count(trained: Trained) -> None:
    partial = trained.training.output_dir / ".checkpoint-0.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(trained.training.output_dir) is None
    folder = trained.checkpoints.save(trained.progress)
    assert latest_checkpoint(trained.training.output_dir) == folder
    assert not partial.exists()


@pytest.mark.parametrize(("limit", "kept"), [(1, [2, 4]), (2, [2, 4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_old_checkpoints_go_and_the_best_stays(workbench: Any, tmp_path: Path, limit: int, kept: list[int]) -> None:
    trained = Trained(workbench, tmp_path, save_total_limit=limit, save_only_model=True)
    for step, metric in enumerate((0.3, 0.9, 0.5, 0.6), start=1):
        trained.progress.step = step
        trained.checkpoints.score(trained.progress, {BEST_BY: metric})
        trained.checkpoints.save(trained.progress)
    assert [folder.name for folder in checkpoints_in(tmp_path)] == [f"checkpoint-{step}" for step in kept]
    assert read_state(tmp_path / "checkpoint-4").best_metric == 0.9


def saved_at(trained: Trained, *steps: int) -> list[Path]:
    folders = []
    for trained.progress.step in steps:
        folders.append(trained.checkpoints.save(trained.progress))
    return folders


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def resumed_from(folder: Path, limit: int) -> Trained:
    """A whole model is loaded from the checkpoint itself."""
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    tokenizer = load_tokenizer(str(folder))
    return Trained(SimpleNamespace(loaded=loaded, tokenizer=tokenizer), folder.parent, save_total_limit=limit)


def test_a_resumed_run_throws_away_what_it_was_loaded_from_and_goes_on(trained: Trained, tmp_path: Path) -> None:
    four, _ = saved_at(trained, 4, 6)
    companions = names_in(four)
    (tmp_path / "checkpoint-6" / "model.safetensors").write_bytes(b"cut")
    resumed = resumed_from(four, limit=1)
    resumed.checkpoints.restore(four)
    set_aside_later(tmp_path, 4, in_use=four)
    for step in (5, 7):
        (folder,) = saved_at(resumed, step)
        assert names_in(tmp_path) == ["abandoned-1", folder.name]
        assert latest_checkpoint(tmp_path) == folder
        assert names_in(folder) == companions
    assert names_in(tmp_path / "abandoned-1") == ["checkpoint-6"]


def test_what_was_just_written_is_never_thrown_away(workbench: Any, tmp_path: Path) -> None:
    trained = Trained(workbench, tmp_path, save_total_limit=1, save_only_model=True)
    (tmp_path / "checkpoint-6").mkdir()
    saved_at(trained, 4, 5)
    assert names_in(tmp_path) == ["checkpoint-5", "checkpoint-6"]


def test_a_history_that_was_given_up_is_kept_aside_and_told(
    workbench: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = Trained(workbench, tmp_path, save_only_model=True)
    _, four, _, _ = saved_at(trained, 2, 4, 6, 10)
    set_aside_later(tmp_path, 4, in_use=four)
    assert latest_checkpoint(tmp_path) == four
    assert names_in(tmp_path / "abandoned-1") == ["checkpoint-10", "checkpoint-6"]
    assert f"{tmp_path / 'abandoned-1'}, remove what is not wanted: checkpoint-6, checkpoint-10" in caplog.text
    set_aside_later(tmp_path, 0, in_use=four)
    assert names_in(tmp_path / "abandoned-2") == ["checkpoint-2"]
    assert read_state(tmp_path / "abandoned-1" / "checkpoint-10").global_step == 10
    caplog.clear()
    set_aside_later(tmp_path, 4, in_use=four)
    assert names_in(tmp_path) == ["abandoned-1", "abandoned-2", "checkpoint-4"]
    assert not caplog.text


def test_the_best_is_the_highest_of_the_chosen_metric(workbench: Any, tmp_path: Path) -> None:
    trained = Trained(workbench, tmp_path, metric_for_best_model="eval_rollout_precision", save_only_model=True)
    for step, precision in enumerate((0.3, 0.9, None, 0.6), start=1):
        trained.progress.step = step
        found = {} if precision is None else {"eval_rollout_precision": precision}
        trained.checkpoints.score(trained.progress, {BEST_BY: step / 10, **found})
    folder = trained.checkpoints.save(trained.progress)
    assert (read_state(folder).best_global_step, read_state(folder).best_metric) == (2, 0.9)


def test_a_best_score_of_another_metric_is_not_held_against_the_one_of_now(workbench: Any, tmp_path: Path) -> None:
    trained = Trained(workbench, tmp_path)
    trained.checkpoints.score(trained.progress, {BEST_BY: 0.9})
    folder = trained.checkpoints.save(trained.progress)
    state = json.loads((folder / "trainer_state.json").read_text())
    for metric, best in ((BEST_BY, 0.9), ("eval_rollout_f1", 0.1)):
        state["values"] = {"training.metric_for_best_model": metric}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        resumed = Trained(workbench, tmp_path / metric)
        resumed.checkpoints.restore(folder)
        resumed.checkpoints.score(Progress(num_steps=NUM_STEPS, step=1), {BEST_BY: 0.1})
        assert read_state(resumed.checkpoints.save(Progress(num_steps=NUM_STEPS, step=1))).best_metric == best


def test_a_model_without_optimizer_state_cannot_be_resumed(workbench: Any, tmp_path: Path) -> None:
    trained = Trained(workbench, tmp_path, save_only_model=True)
    folder = trained.checkpoints.save(trained.progress)
    assert not (folder / "optimizer.safetensors").exists()
    with pytest.raises(DataError, match="save_only_model"):
        trained.checkpoints.restore(folder)


@pytest.mark.parametrize(
    ("strategy", "steps"), [("no", []), ("steps", [2, 4, 5]), ("epoch", [3, 5]), ("best", [1, 3, 5])]
)
def test_checkpoints_are_written_when_the_strategy_says_so(
    workbench: Any, tmp_path: Path, strategy: str, steps: list[int]
) -> None:
    trained = Trained(workbench, tmp_path, save_strategy=strategy, save_steps=2, save_only_model=True)
    written = []
    for step, metric in enumerate((0.1, 0.1, 0.4, 0.2, 0.3), start=1):
        progress = Progress(num_steps=5, step=step, epoch=step / 3)
        trained.checkpoints.score(progress, {BEST_BY: metric})
        if trained.checkpoints.due(progress):
            written.append(step)
            trained.checkpoints.save(progress)
    assert written == steps


def test_a_checkpoint_says_how_it_is_asked_and_stays_whole_when_that_is_corrected(
    workbench: Any, tmp_path: Path
) -> None:
    usage = CheckpointUsage(
        system="", user_prompt="Detect.", object_ordering="random", min_pixels=None, max_pixels=9,
        stop_tokens=("<|im_end|>",), max_model_len=99, max_new_tokens=9,
    )  # fmt: skip
    save_usage(usage.model_copy(update={"user_prompt": "as the base was asked"}), workbench.loaded.folder)
    try:
        assert not (Trained(workbench, tmp_path / "silent").checkpoints.save(Progress(1)) / USAGE_FILE).exists()
        trained = Trained(workbench, tmp_path, usage=usage)
        folder = trained.checkpoints.save(trained.progress)
        assert read_usage(folder) == usage
        save_usage(usage.model_copy(update={"user_prompt": "Detect all objects."}), folder)
        assert USAGE_FILE not in read_state(folder).files
    finally:
        (workbench.loaded.folder / USAGE_FILE).unlink()


def test_state_is_readable_json(trained: Trained) -> None:
    folder = trained.checkpoints.save(trained.progress)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 0
    assert state["config_digest"] == "digest"
    assert state["files"]["model.safetensors"] == (folder / "model.safetensors").stat().st_size

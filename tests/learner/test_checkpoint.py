"""Checkpoints: plain Hugging Face folders that a run goes on from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from learner.checkpoint import Checkpoints, checkpoints_in, latest_checkpoint, read_state
from learner.learn import Learner
from learner.losses.terms import LossWeights
from learner.model.load import load_model, load_tokenizer
from learner.objectives.objective import LastPass
from learner.objectives.supervised import Supervised
from learner.optim import StepOptimizer
from learner.progress import Progress
from shared.config.training import TrainingSection
from shared.errors import DataError

NUM_STEPS = 6


class Trained:
    """A learner with its checkpoints, for `NUM_STEPS` steps on one made-up record after another."""

    def __init__(self, bench: Any, folder: Path, **keys: Any) -> None:
        training = TrainingSection(
            output_dir=folder, learning_rate=1e-3, optim="muon", lr_scheduler_type="linear", **keys
        )
        self.bench, self.training = bench, training
        self.optimizer = StepOptimizer(bench.loaded.model, training, NUM_STEPS)
        self.learner = Learner(bench.loaded, self.optimizer, pad_token_id=bench.tokenizer.pad_token_id)
        self.checkpoints = Checkpoints(bench.loaded, self.optimizer, training, "digest")
        self.progress = Progress(num_steps=NUM_STEPS)

    def train(self, steps: int, pack_of: Any, totals_of: Any) -> list[float]:
        losses = []
        objective = Supervised(LastPass(LossWeights(), self.bench.coordinate_ids))
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
        trained.checkpoints.score(trained.progress, {"eval_rollout_f1": metric})
        trained.checkpoints.save(trained.progress)
    assert [folder.name for folder in checkpoints_in(tmp_path)] == [f"checkpoint-{step}" for step in kept]
    assert read_state(tmp_path / "checkpoint-4").best_metric == 0.9


def test_the_best_is_the_highest_of_the_chosen_metric(workbench: Any, tmp_path: Path) -> None:
    trained = Trained(workbench, tmp_path, metric_for_best_model="eval_rollout_precision", save_only_model=True)
    for step, precision in enumerate((0.3, 0.9, None, 0.6), start=1):
        trained.progress.step = step
        found = {} if precision is None else {"eval_rollout_precision": precision}
        trained.checkpoints.score(trained.progress, {"eval_rollout_f1": step / 10, **found})
    folder = trained.checkpoints.save(trained.progress)
    assert (read_state(folder).best_global_step, read_state(folder).best_metric) == (2, 0.9)


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
        trained.checkpoints.score(progress, {"eval_rollout_f1": metric})
        if trained.checkpoints.due(progress):
            written.append(step)
            trained.checkpoints.save(progress)
    assert written == steps


def test_state_is_readable_json(trained: Trained) -> None:
    folder = trained.checkpoints.save(trained.progress)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 0
    assert state["config_digest"] == "digest"
    assert state["files"]["model.safetensors"] == (folder / "model.safetensors").stat().st_size

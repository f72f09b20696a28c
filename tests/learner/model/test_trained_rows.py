"""Training the coordinate rows of embeddings and head alone, wherever the rest is frozen or adapted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass
from learner.channels.reward_averages import RewardAverages
from learner.checkpoints.checkpoint import Checkpoints, Followed
from learner.checkpoints.init import init
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_model, load_tokenizer
from learner.model.family import VisionLanguageModel
from learner.model.loaded import LoadedModel
from learner.model.trained_rows import RowsLinear, layers_with_rows
from learner.packing.collate import collate
from learner.plan.progress import Progress
from learner.reporting.collapse_guard import Guard
from learner.training.learner import Learner
from learner.training.optim import StepOptimizer
from shared.config.stage2 import GuardSection, RewardSection, Stage2Section
from shared.config.training import TrainingSection, TunerSection
from shared.errors import ConfigError
from tests.learner.conftest import Workbench, packed, totals_of
from tests.stock_checkpoint import write_stock

EMBEDDINGS, HEAD = "model.language_model.embed_tokens", "lm_head"
ROWS_ALONE = TunerSection(coordinate_rows=True, freeze_llm=True, freeze_vit=True, freeze_aligner=True)
ROWS_BESIDE = {
    "full": TunerSection(coordinate_rows=True),
    "dora": TunerSection(train_type="lora", use_dora=True, lora_rank=4, coordinate_rows=True),
}
TAUGHT = Stage2Section(coord_soft_ce_weight=1.0)


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A stock checkpoint with coordinate tokens, its head tied to the embeddings or not; treat it as read-only."""
    made: dict[bool, Path] = {}

    def checkpoint(tied: bool) -> Path:
        if tied not in made:
            folder = tmp_path_factory.mktemp("tied" if tied else "untied")
            write_stock(folder / "stock", tied=tied)
            list(init(str(folder / "stock"), folder / "model"))
            made[tied] = folder / "model"
        return made[tied]

    return checkpoint


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, checkpoint_of: Callable[[bool], Path]) -> Path:
    return checkpoint_of(request.param)


def bench_of(folder: Path, tuner: TunerSection, dtype: str = "float32") -> Workbench:
    tokenizer = load_tokenizer(str(folder))
    loaded = load_model(str(folder), dtype=dtype, device="cpu", tuner=tuner)
    return Workbench(loaded, tokenizer, CoordinateVocabulary.from_tokenizer(tokenizer))


def objective_of(bench: Workbench, num_passes: int = 1) -> Expectation:
    return Expectation(LastPass(TAUGHT, bench.coordinate_ids), num_passes)


def loss_of(bench: Workbench, num_passes: int) -> Tensor:
    samples = bench.sample(0, 3, coord_ce_weight=1.0), bench.sample(1, 0)
    batch = collate(packed(*samples), bench.loaded, pad_token_id=bench.tokenizer.pad_token_id)
    loss: Tensor = objective_of(bench, num_passes)(bench.loaded, batch, totals_of(*samples)).total
    return loss


def train(bench: Workbench, optimizer: StepOptimizer, steps: int) -> None:
    learner = Learner(bench.loaded, optimizer, pad_token_id=bench.tokenizer.pad_token_id)
    for step in range(steps):
        sample = bench.sample(step, 2)
        learner.accumulate(learner.lay_out(packed(sample)), objective_of(bench), totals_of(sample))
        learner.update()


def matrices(model: VisionLanguageModel) -> dict[str, Tensor]:
    """What is stored of embeddings and head, by the names of checkpoints."""
    state = model.state_dict()  # type: ignore[attr-defined]
    return {name: state[f"{name}.weight"].clone() for name in (EMBEDDINGS, HEAD)}


@pytest.mark.parametrize("num_passes", [1, 2])
@pytest.mark.parametrize("change", ["bare", "watched"])
def test_loss_and_gradient_of_the_rows_are_those_of_whole_matrices(folder: Path, num_passes: int, change: str) -> None:
    whole, rows = bench_of(folder, TunerSection()), bench_of(folder, ROWS_ALONE)
    if change == "watched":  # then the head is called as the module it is
        rows.loaded.model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: None)
    expected, found = loss_of(whole, num_passes), loss_of(rows, num_passes)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)
    expected.backward()
    found.backward()
    own_head = rows.loaded.model.get_output_embeddings().weight is not rows.loaded.model.get_input_embeddings().weight
    for name, layer in layers_with_rows(rows.loaded.model).items():
        gradient = whole.loaded.model.get_submodule(name).weight.grad[whole.coordinate_ids]
        softened = num_passes == 2 and name == EMBEDDINGS and own_head
        assert (float(gradient.norm()) > 0) != softened  # what replaces a coordinate has no gradient
        assert float((layer.trained_rows.grad - gradient).norm()) <= 1e-5 * float(gradient.norm())
        assert layer.weight.grad is None


@pytest.mark.parametrize("kind", ROWS_BESIDE)
def test_no_other_row_moves_and_none_has_moments(folder: Path, kind: str) -> None:
    bench = bench_of(folder, ROWS_BESIDE[kind])
    before = matrices(bench.loaded.model)
    optimizer = StepOptimizer(
        bench.loaded, TrainingSection(output_dir=Path("unused"), learning_rate=1e-2, weight_decay=0.1), 4
    )
    train(bench, optimizer, 2)
    first = bench.vocabulary.coordinate_ids[0]
    for name, matrix in matrices(bench.loaded.model).items():
        assert matrix[:first].equal(before[name][:first])
        assert (matrix[first:] != before[name][first:]).any(dim=1).all()
    of_the_vocabulary = [each for each in optimizer.optimizers["adamw"].state if len(each) > 1000]
    assert of_the_vocabulary == []


def test_a_tied_head_stays_tied(checkpoint_of: Callable[[bool], Path]) -> None:
    for tied in (True, False):
        loaded = load_model(str(checkpoint_of(tied)), device="cpu", tuner=ROWS_ALONE)
        trained = [name for name, each in loaded.model.named_parameters() if each.requires_grad]
        assert trained == [f"{name}.trained_rows" for name in ((EMBEDDINGS,) if tied else (EMBEDDINGS, HEAD))]


def test_the_matrix_under_adapters_is_held_in_the_compute_type_and_its_rows_are_trained_in_float32(
    folder: Path,
) -> None:
    bench = bench_of(folder, ROWS_BESIDE["dora"], dtype="bfloat16")
    for layer in layers_with_rows(bench.loaded.model).values():
        assert layer.weight.dtype is torch.bfloat16
        assert layer.trained_rows.dtype is torch.float32
    train(bench, StepOptimizer(bench.loaded, TrainingSection(output_dir=Path("unused")), 1), 1)
    head = bench.loaded.model.get_output_embeddings()
    assert isinstance(head, RowsLinear)
    assert head.current_weight()[bench.coordinate_ids].equal(head.trained_rows.bfloat16())


def test_rows_of_what_is_trained_whole_are_refused(folder: Path) -> None:
    tuner = TunerSection(train_type="lora", coordinate_rows=True, modules_to_save=("embed_tokens",))
    with pytest.raises(ConfigError, match=r"tuner.coordinate_rows: true trains single rows of .*modules_to_save"):
        load_model(str(folder), device="cpu", tuner=tuner)


def test_a_checkpoint_of_full_training_is_a_plain_model_that_goes_on_bit_by_bit(folder: Path, tmp_path: Path) -> None:
    training = TrainingSection(output_dir=tmp_path, learning_rate=1e-2)

    def opened(model: Path) -> tuple[Workbench, StepOptimizer, Checkpoints]:
        bench = bench_of(model, ROWS_BESIDE["full"])
        optimizer = StepOptimizer(bench.loaded, training, 4)
        followed = Followed(Guard(GuardSection()), RewardAverages(RewardSection()), 1.0)
        return bench, optimizer, Checkpoints(bench.loaded, optimizer, followed, training, "digest")

    unbroken, optimizer, checkpoints = opened(folder)
    train(unbroken, optimizer, 2)
    saved = checkpoints.save(Progress(num_steps=4, step=2))
    plain: Any = AutoModelForImageTextToText.from_pretrained(saved, dtype="auto")
    assert plain.state_dict().keys() == AutoModelForImageTextToText.from_pretrained(folder).state_dict().keys()
    for name, matrix in matrices(unbroken.loaded.model).items():
        assert plain.get_submodule(name).weight.equal(matrix)
    train(unbroken, optimizer, 2)

    resumed, its_optimizer, its_checkpoints = opened(saved)
    its_checkpoints.restore(saved)
    train(resumed, its_optimizer, 2)
    assert_same_parameters(resumed.loaded, unbroken.loaded)


def assert_same_parameters(ours: LoadedModel, theirs: LoadedModel) -> None:
    expected = dict(theirs.model.named_parameters())
    assert expected.keys() == dict(ours.model.named_parameters()).keys()
    assert [name for name, each in ours.model.named_parameters() if not each.equal(expected[name])] == []

"""Checkpoints of adapters: PEFT's format, exact resume, and what refuses to be resumed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoTokenizer

from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass
from learner.channels.reward_averages import RewardAverages
from learner.checkpoints.checkpoint import Checkpoints, Followed, latest_checkpoint, read_state
from learner.checkpoints.start import Start, start_of
from learner.families.load import load_model
from learner.model.loaded import LoadedModel
from learner.plan.progress import Progress
from learner.reporting.collapse_guard import Guard
from learner.training.learner import Learner
from learner.training.optim import StepOptimizer
from shared.checkpoint_facts import base_model
from shared.config.models import Config
from shared.config.stage2 import GuardSection, RewardSection, Stage2Section
from shared.config.training import TrainingSection, TunerSection
from shared.errors import ConfigError, DataError

pytestmark = pytest.mark.slow

TUNERS = {
    "lora": TunerSection(train_type="lora", lora_rank=4, lora_dropout=0.3),
    "dora": TunerSection(train_type="lora", lora_rank=4, lora_dropout=0.3, use_dora=True),
    "rows": TunerSection(train_type="lora", lora_rank=4, use_dora=True, coordinate_rows=True),
    "saved": TunerSection(train_type="lora", target_modules=("q_proj",), modules_to_save=("embed_tokens", "merger")),
}


class Run:
    """A learner of adapters with its checkpoints."""

    def __init__(
        self, bench: Any, folder: Path, tuner: TunerSection, adapters: Path | None = None, dtype: str = "float32"
    ) -> None:
        base = str(bench.loaded.folder)
        self.loaded = load_model(base, dtype=dtype, device="cpu", tuner=tuner, seed=3, adapters=adapters)
        self.bench = bench
        training = TrainingSection(output_dir=folder, learning_rate=1e-2, vit_lr=1e-3)
        self.optimizer = StepOptimizer(self.loaded, training, num_steps=6)
        self.learner = Learner(self.loaded, self.optimizer, pad_token_id=bench.tokenizer.pad_token_id)
        self.checkpoints = Checkpoints(
            self.loaded,
            self.optimizer,
            Followed(Guard(GuardSection()), RewardAverages(RewardSection()), 1.0),
            training,
            "digest",
        )
        self.progress = Progress(num_steps=6)
        self.objective = Expectation(LastPass(Stage2Section(), bench.coordinate_ids), 2)

    def train(self, steps: int, pack_of: Any, totals_of: Any) -> None:
        for _ in range(steps):
            sample = self.bench.sample(self.progress.step, 2)
            self.learner.accumulate(self.learner.lay_out(pack_of(sample)), self.objective, totals_of(sample))
            self.learner.update()
            self.progress.step += 1

    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.loaded.model.state_dict().items()}


@pytest.fixture
def run(workbench: Any, tmp_path: Path) -> Callable[..., Run]:
    def start(tuner: TunerSection, **options: Any) -> Run:
        return Run(workbench, tmp_path, tuner, **options)

    return start


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(60).reshape(2, 30)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("name", TUNERS)
@pytest.mark.filterwarnings("error:.*missing.*adapter")
def test_peft_loads_a_checkpoint_and_computes_the_same(
    run: Callable[..., Run], name: str, pack_of: Any, step_totals_of: Any
) -> None:
    trained = run(TUNERS[name])
    fresh = logits(trained.loaded.model)
    trained.loaded.model.train()
    trained.train(2, pack_of, step_totals_of)
    folder = trained.checkpoints.save(trained.progress)
    base = AutoModelForImageTextToText.from_pretrained(base_model(str(folder)), dtype=torch.float32)
    again = logits(PeftModel.from_pretrained(base, folder))
    expected = logits(trained.loaded.model)
    assert (expected - fresh).abs().max() > 1e-2
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == trained.bench.tokenizer.get_vocab()
    assert not (folder / "model.safetensors").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TUNERS)
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped_bit_by_bit(
    run: Callable[..., Run], name: str, dtype: str, pack_of: Any, step_totals_of: Any
) -> None:
    unbroken = run(TUNERS[name], dtype=dtype)
    unbroken.train(2, pack_of, step_totals_of)
    folder = unbroken.checkpoints.save(unbroken.progress)
    unbroken.train(2, pack_of, step_totals_of)

    torch.manual_seed(99)  # dropout goes on from the checkpoint's random numbers, not from these
    resumed = run(TUNERS[name], adapters=folder, dtype=dtype)
    resumed.progress.step = resumed.checkpoints.restore(folder).global_step
    assert resumed.state().keys() == unbroken.state().keys()
    resumed.train(2, pack_of, step_totals_of)
    expected = unbroken.state()
    assert all(tensor.equal(expected[name]) for name, tensor in resumed.state().items())


def test_a_broken_checkpoint_of_adapters_is_skipped(run: Callable[..., Run], caplog: pytest.LogCaptureFixture) -> None:
    trained = run(TUNERS["lora"])
    older = trained.checkpoints.save(trained.progress)
    trained.progress.step = 5
    newer = trained.checkpoints.save(trained.progress)
    file = newer / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert latest_checkpoint(older.parent) == older
    assert str(newer) in caplog.text


@pytest.mark.parametrize(
    ("tuner", "said"),
    [
        (TunerSection(train_type="lora", lora_rank=8), r"tuner.lora_rank: 8, but the adapters in .* have 4"),
        (TunerSection(train_type="lora", lora_rank=4, lora_alpha=4), "tuner.lora_alpha: 4"),
        (TunerSection(train_type="lora", lora_rank=4, use_dora=True), "tuner.use_dora: True"),
        (TunerSection(train_type="lora", lora_rank=4, freeze_vit=True), "was trained on other modules"),
        (
            TunerSection(train_type="lora", lora_rank=4, coordinate_rows=True),
            "tuner.coordinate_rows: True, but .* False",
        ),
    ],
)
def test_other_adapters_than_the_configurations_are_an_error(
    run: Callable[..., Run], tuner: TunerSection, said: str
) -> None:
    trained = run(TUNERS["lora"])
    folder = trained.checkpoints.save(trained.progress)
    with pytest.raises(ConfigError, match=said):
        run(tuner, adapters=folder)


@pytest.mark.parametrize("damage", [b"", None], ids=["empty", "gone"])
def test_adapters_without_weights_are_an_error_with_the_folder(
    saved: Path, run: Callable[..., Run], damage: Any
) -> None:
    file = saved / "adapter_model.safetensors"
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(DataError, match=rf"{saved}: adapter_model.safetensors cannot be read"):
        run(TUNERS["lora"], adapters=saved)


def test_a_checkpoint_names_its_base_and_the_type_of_its_weights(run: Callable[..., Run]) -> None:
    trained = run(TUNERS["dora"])
    folder = trained.checkpoints.save(trained.progress)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(trained.loaded.folder.resolve())
    assert config["use_dora"]
    assert config["r"] == 4
    assert read_state(folder).base_dtype == "float32"


@pytest.fixture
def saved(run: Callable[..., Run]) -> Path:
    trained = run(TUNERS["lora"])
    return trained.checkpoints.save(trained.progress)


def start(config: Config) -> Start:
    return start_of(config.model.model, config.tuner, config.training)


def test_a_run_starts_from_model_model(config_of: Callable[..., Config], checkpoint: Path) -> None:
    assert start(config_of()) == Start(str(checkpoint), None, None)


def test_adapters_are_resumed_on_the_model_that_servers_start_from(
    config_of: Callable[..., Config], checkpoint: Path, saved: Path
) -> None:
    resume = f"training.resume_from_checkpoint={saved}"
    assert start(config_of("tuner.train_type=lora", resume)) == Start(str(checkpoint), saved, saved, answer_weight=1.0)
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint: .* holds adapters, but tuner.train_type is full"):
        start(config_of(resume))


def test_adapters_as_model_model_go_on_their_base(
    config_of: Callable[..., Config], workbench: Any, saved: Path
) -> None:
    config = config_of("tuner.train_type=lora", f"model.model={saved}")
    assert start(config) == Start(str(workbench.loaded.folder.resolve()), saved, None)
    with pytest.raises(ConfigError, match=r"model.model: .* holds adapters.*boxloop export"):
        start(config_of(f"model.model={saved}"))


def test_whole_weights_are_not_resumed_as_adapters(
    config_of: Callable[..., Config], run: Callable[..., Run], checkpoint: Path
) -> None:
    trained = run(TunerSection())
    folder = trained.checkpoints.save(trained.progress)
    resume = f"training.resume_from_checkpoint={folder}"
    assert start(config_of(resume)) == Start(str(folder), None, folder, answer_weight=1.0)
    with pytest.raises(ConfigError, match=r"was trained whole, but tuner\.train_type is lora"):
        start(config_of(resume, "tuner.train_type=lora"))
    with pytest.raises(ConfigError, match="holds no whole checkpoint"):
        start(config_of("training.resume_from_checkpoint=true"))
    with pytest.raises(DataError, match=r"trainer_state.json cannot be read"):
        start(config_of(f"training.resume_from_checkpoint={checkpoint}"))


def test_every_weight_of_a_resumed_run_is_on_the_device_and_trained_as_before(
    run: Callable[..., Run], saved: Path
) -> None:
    def trained(loaded: LoadedModel) -> set[str]:
        return {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}

    assert trained(run(TUNERS["lora"], adapters=saved).loaded) == trained(run(TUNERS["lora"]).loaded)

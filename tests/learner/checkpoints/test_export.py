"""`boxloop export`: a plain Hugging Face checkpoint that answers as the live model does."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from learner.channels.reward_averages import RewardAverages
from learner.checkpoints.checkpoint import Checkpoints, Followed
from learner.checkpoints.export import export, main
from learner.families.load import load_model, load_tokenizer
from learner.model.loaded import LoadedModel
from learner.plan.progress import Progress
from learner.reporting.collapse_guard import Guard
from learner.training.optim import StepOptimizer
from learner.types import RolloutRequest
from rollout_server.engines.base import EngineAnswer, EngineRequest
from rollout_server.engines.table import build_engine
from rollout_server.settings import ServerSettings, limits_for
from shared.checkpoint_facts import ABOUT_THESE_WEIGHTS
from shared.config.stage2 import GuardSection, RewardSection
from shared.config.training import TrainingSection, TunerSection
from shared.wire import Sampling

STOP_ID = 7
TUNERS = {
    "full": TunerSection(),
    "lora": TunerSection(train_type="lora"),
    "dora": TunerSection(train_type="lora", use_dora=True, modules_to_save=("embed_tokens",)),
    "rows": TunerSection(train_type="lora", use_dora=True, coordinate_rows=True),
    "rows alone": TunerSection(coordinate_rows=True, freeze_vit=True),
}


@pytest.fixture
def saved(checkpoint: Path, tmp_path: Path) -> Callable[..., tuple[LoadedModel, Path]]:
    """A model that training has moved, and the checkpoint of it."""

    def save(tuner: TunerSection, base: Path = checkpoint) -> tuple[LoadedModel, Path]:
        loaded = load_model(str(base), dtype="float32", device="cpu", tuner=tuner)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        training = TrainingSection(output_dir=tmp_path / "run", save_only_model=True)
        optimizer = StepOptimizer(loaded, training, 1)
        checkpoints = Checkpoints(
            loaded, optimizer, Followed(Guard(GuardSection()), RewardAverages(RewardSection()), 1.0), training, "digest"
        )
        return loaded, checkpoints.save(Progress(num_steps=1, step=1))

    return save


def answers(model: Any) -> torch.Tensor:
    """Greedy answers to four made-up images."""
    generator = torch.Generator().manual_seed(3)
    config = model.config
    prompt = torch.tensor(
        [5, config.vision_start_token_id, *[config.image_token_id] * 4, config.vision_end_token_id, 9]
    )
    ids = prompt.repeat(4, 1)
    return model.eval().generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == config.image_token_id).int(),
        pixel_values=torch.randn((4 * 16, 3 * 2 * 16 * 16), generator=generator),
        image_grid_thw=torch.tensor([[1, 4, 4]] * 4),
        max_new_tokens=24,
        do_sample=False,
    )


@pytest.mark.parametrize("name", TUNERS)
def test_an_exported_model_answers_as_the_live_one_does(
    saved: Callable[..., tuple[LoadedModel, Path]], checkpoint: Path, tmp_path: Path, name: str
) -> None:
    loaded, folder = saved(TUNERS[name])
    export(folder, tmp_path / "out")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    untrained = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto")
    expected = answers(loaded.model)
    assert answers(plain).equal(expected)
    assert not answers(untrained).equal(expected)
    assert plain.dtype is torch.float32
    assert plain.state_dict().keys() == untrained.state_dict().keys()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in checkpoint.iterdir()}
    assert load_tokenizer(str(tmp_path / "out")).get_vocab() == load_tokenizer(str(checkpoint)).get_vocab()


def greedy_ids(model: Any, request: RolloutRequest) -> tuple[int, ...]:
    """The live model's answer, by transformers' own generation; ends with the stop id if one was reached."""
    encoded, config = request.encoded, model.config
    ids = torch.tensor([encoded.prompt_token_ids])
    made = model.eval().generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == config.image_token_id).int(),
        pixel_values=torch.from_numpy(encoded.image.pixel_values),
        image_grid_thw=torch.tensor([encoded.image.grid]),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=STOP_ID,
        suppress_tokens=[config.image_token_id, config.video_token_id],
    )
    return tuple(made[0, ids.shape[1] :].tolist())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # vLLM's core is a fork that keeps the filters of this process
async def test_vllm_loads_an_export_of_dora_and_answers_as_the_live_model_does(
    saved: Callable[..., tuple[LoadedModel, Path]],
    checkpoint: Path,
    requests_of: Callable[[int], list[RolloutRequest]],
    tmp_path: Path,
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    loaded, folder = saved(TUNERS["dora"])
    export(folder, tmp_path / "out")
    requests = requests_of(8)
    expected = {request.uid: greedy_ids(loaded.model, request) for request in requests}
    untrained = load_model(str(checkpoint), dtype="float32", device="cpu").model
    assert all(greedy_ids(untrained, request) != expected[request.uid] for request in requests[:3])

    config = loaded.model.config
    sampling = Sampling(
        max_new_tokens=24, stop_token_ids=(STOP_ID,), banned_token_ids=(config.image_token_id, config.video_token_id)
    )
    asked = [
        EngineRequest(each.uid, each.encoded.request_token_ids, (each.encoded.image.png,), sampling)
        for each in requests
    ]
    engine = build_engine(ServerSettings(str(tmp_path / "out"), "vllm", limits_for(256, 8), dtype="float32"))
    await engine.start()
    try:
        async with aclosing(engine.generate(asked)) as results:
            found = {result.uid: result async for result in results}
    finally:
        await engine.close()
    assert all(isinstance(answer, EngineAnswer) for answer in found.values()), found
    assert {uid: answer.token_ids for uid, answer in found.items()} == expected


def test_what_is_said_of_the_weights_goes_with_them(
    saved: Callable[..., tuple[LoadedModel, Path]], tmp_path: Path
) -> None:
    _, folder = saved(TUNERS["full"])
    for name in ABOUT_THESE_WEIGHTS:
        (folder / name).write_text(name)
    export(folder, tmp_path / "out")
    assert [(tmp_path / "out" / name).read_text() for name in ABOUT_THESE_WEIGHTS] == list(ABOUT_THESE_WEIGHTS)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_type_is_the_base_checkpoints_unless_another_is_asked_for(
    saved: Callable[..., tuple[LoadedModel, Path]], checkpoint: Path, tmp_path: Path, name: str
) -> None:
    base = tmp_path / "base"
    AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16).save_pretrained(base)
    load_tokenizer(str(checkpoint)).save_pretrained(base)
    _, folder = saved(TUNERS[name], base)
    export(folder, tmp_path / "out")
    export(folder, tmp_path / "wide", "float32")
    types = {
        name: AutoModelForImageTextToText.from_pretrained(tmp_path / name, dtype="auto").dtype
        for name in ("out", "wide")
    }
    assert types == {"out": torch.bfloat16, "wide": torch.float32}


def test_what_cannot_be_exported_is_told_with_an_exit_code(
    saved: Callable[..., tuple[LoadedModel, Path]],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert "trainer_state.json cannot be read" in capsys.readouterr().out
    _, folder = saved(TUNERS["lora"])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    assert main([str(folder), "--out", str(tmp_path / "taken")]) == 2
    assert f"{tmp_path / 'taken'} exists and is not empty" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "taken"]


@pytest.mark.slow
def test_the_command_writes_the_folder(saved: Callable[..., tuple[LoadedModel, Path]], tmp_path: Path) -> None:
    _, folder = saved(TUNERS["lora"])
    command = [sys.executable, "-m", "compose", "export", str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()

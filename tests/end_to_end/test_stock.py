"""From a stock checkpoint to a trained one by the commands of docs/stage1.md."""

from collections.abc import Mapping
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from learner.families.load import load_model, load_tokenizer
from learner.model.adapter_files import tuner_of
from learner.model.coordinate_rows import check_coordinate_rows
from learner.weight_sync.snapshot import full_weights
from rollout_server.engines.base import EngineAnswer, EngineRequest, WeightFile
from rollout_server.engines.table import build_engine
from rollout_server.settings import ServerSettings, limits_for
from shared.checkpoint_facts import base_model, holds_adapters
from shared.config.training import TunerSection
from shared.wire import Sampling
from tests.end_to_end.conftest import Command
from tests.stock_checkpoint import write_stock

pytestmark = pytest.mark.slow

TRAINED = (
    "server_port=0", "global_max_length=1024", "training.optim=adamw", "training.embed_lr=0.01",
    "training.learning_rate=0.003", "training.eval_strategy=no", "training.eval_on_start=false",
    "tuner.coordinate_rows=true",
)  # fmt: skip
STAGE1 = ("custom.trainer_variant=stage1_sft", "training.max_steps=3", "training.save_steps=3")
STAGE2 = ("custom.extra.stage2_ab.schedule.pattern=[B]", "training.max_steps=1", "training.save_steps=1")
KINDS = {"full": (), "dora": ("tuner.train_type=lora", "tuner.use_dora=true", "tuner.lora_rank=4")}
RUNS = [pytest.param("full", marks=pytest.mark.very_slow), "dora"]


@pytest.fixture(scope="module")
def model(start_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock checkpoint after `boxloop init`; treat it as read-only."""
    folder = tmp_path_factory.mktemp("stock")
    write_stock(folder / "stock")
    start_once(["init", str(folder / "stock"), "--out", str(folder / "model")], folder)
    return folder / "model"


@pytest.mark.parametrize("kind", RUNS)
async def test_a_stock_checkpoint_is_trained_in_both_stages_and_exported(
    kind: str, model: Path, config_for: Any, start_once: Any, image: Any, tmp_path: Path
) -> None:
    def train(stage: str, start: Path, *overrides: str) -> Command:
        config = config_for(tmp_path / stage, start)
        return start_once(["up", f"config={config}", *TRAINED, *KINDS[kind], *overrides], tmp_path / stage / "run")

    def export(checkpoint: Path, name: str) -> Path:
        start_once(["export", str(checkpoint), "--out", str(tmp_path / name), "--dtype", "float32"], tmp_path)
        return tmp_path / name

    first = train("stage1", model, *STAGE1)
    after_stage1 = export(first.folder / "checkpoint-3", "after stage 1")
    second = train("stage2", after_stage1, *STAGE2)
    (step,) = second.log()
    assert step["stage2/raw_rollouts"] > 0
    exported = export(second.folder / "checkpoint-1", "after stage 2")

    ids = tuple(sorted(load_tokenizer(str(model)).convert_tokens_to_ids([f"<|coord_{bin}|>" for bin in range(1000)])))
    assert load_tokenizer(str(exported)).get_vocab() == load_tokenizer(str(model)).get_vocab()
    assert check_coordinate_rows(exported, ids, TunerSection(train_type="lora")) == ""
    rows = [rows_of(folder, ids) for folder in (model, after_stage1, exported)]
    assert all((one != other).any(dim=1).all() for one, other in pairwise(rows))
    others = [rows_of(folder, range(ids[0])) for folder in (model, exported)]
    assert others[0].equal(others[1])

    published = full_weights(learner_of(second.folder / "checkpoint-1"))
    pictures = [image(seed, 128, 128) for seed in range(4)]
    served = await answers(after_stage1, pictures, published)
    assert served != await answers(after_stage1, pictures)
    assert await answers(exported, pictures) == served


def rows_of(folder: Path, ids: Any) -> torch.Tensor:
    matrix = load_model(str(folder), dtype="float32", device="cpu").model.get_input_embeddings().weight
    return matrix.detach()[torch.tensor(ids)]


def learner_of(checkpoint: Path) -> Any:
    """The learner's model as it was when it wrote a checkpoint."""
    if not holds_adapters(checkpoint):
        return load_model(str(checkpoint), dtype="float32", device="cpu")
    base, tuner = base_model(str(checkpoint)), tuner_of(checkpoint)
    return load_model(base, dtype="float32", device="cpu", tuner=tuner, adapters=checkpoint)


async def answers(
    folder: Path, pictures: list[bytes], weights: Mapping[str, torch.Tensor] | None = None
) -> dict[str, tuple[int, ...]]:
    """What a server of a checkpoint says to pictures, greedily, after it was sent weights if there are any."""
    engine = build_engine(ServerSettings(str(folder), "hf", limits_for(1024, 4), dtype="float32"))
    await engine.start()
    tokenizer = load_tokenizer(str(folder))
    prompt = tokenizer.encode("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Detect.<|im_end|>\n")
    sampling = Sampling(
        max_new_tokens=24,
        stop_token_ids=(tokenizer.eos_token_id,),
        banned_token_ids=tuple(tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])),
    )
    requests = [EngineRequest(str(n), tuple(prompt), (each,), sampling) for n, each in enumerate(pictures)]
    if weights is not None:
        file = folder.parent / "published.safetensors"
        save_file({name: each.contiguous() for name, each in weights.items()}, file)
        await engine.load_weights(WeightFile(file))
    try:
        async with aclosing(engine.generate(requests)) as results:
            found = {result.uid: result async for result in results}
    finally:
        await engine.close()
    assert all(isinstance(each, EngineAnswer) for each in found.values()), found
    return {uid: each.token_ids for uid, each in found.items()}

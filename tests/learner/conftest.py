"""A tiny model and packs of targets on it, for tests that run the real thing."""

# The pure tests below this folder need no torch: it is imported by the fixtures that need it, and for types.
from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from learner.detection.record import GroundTruthObject, Record, read_records
from learner.detection.serialize import answer_text
from learner.detection.targets import ground_truth_target
from learner.detection.vocabulary import CoordinateVocabulary
from learner.packing.packer import Pack
from learner.plan.step_plan import StepTotals
from learner.types import EncodedImage, TrainingSample
from shared.config.load import load_config
from shared.config.models import Config
from shared.config.training import TunerSection
from shared.wire import Sampling

if TYPE_CHECKING:
    import torch

    from learner.data.encoding import Encoder
    from learner.model.loaded import LoadedModel
    from learner.run import Run
    from learner.types import RolloutRequest

DESCS = ("red circle", "blue square", "green triangle", "öl 猫")
PATCH_DIM = 3 * 2 * 16 * 16
MERGE_SIZE = 2


@dataclass(frozen=True)
class Workbench:
    """A loaded model with what is needed to make samples for it."""

    loaded: LoadedModel
    tokenizer: Any
    vocabulary: CoordinateVocabulary

    @property
    def coordinate_ids(self) -> torch.Tensor:
        import torch

        return torch.tensor(self.vocabulary.coordinate_ids)

    def sample(
        self, seed: int, num_objects: int, grid: tuple[int, int, int] = (1, 8, 8), **weights: Any
    ) -> TrainingSample:
        """A made-up record with `num_objects` boxes on an image of noise."""
        random = np.random.default_rng(seed)
        corners = random.integers(0, 600, (num_objects, 2))
        sides = random.integers(100, 380, (num_objects, 2))
        objects = [
            GroundTruthObject(DESCS[i % len(DESCS)], "bbox_2d", (*map(int, corner), *map(int, corner + side)))
            for i, (corner, side) in enumerate(zip(corners, sides, strict=True))
        ]
        num_placeholders = grid[0] * grid[1] * grid[2] // MERGE_SIZE**2
        prompt = [
            *self.tokenizer.encode("<|im_start|>user\n" + "look " * (seed % 3) + "<|vision_start|>"),
            *[self.loaded.image_token_id] * num_placeholders,
            *self.tokenizer.encode("<|vision_end|>List all objects.<|im_end|>\n<|im_start|>assistant\n"),
        ]
        target = ground_truth_target(f"made:{seed}", prompt, objects, self.vocabulary, **weights)
        pixels = random.standard_normal((grid[0] * grid[1] * grid[2], PATCH_DIM)).astype(np.float32)
        return TrainingSample(target, EncodedImage(pixels, grid, b""))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, written once; treat it as read-only."""
    from learner.model.tiny import build_tiny

    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder, seed=1)
    return folder


@pytest.fixture
def workbench_of(tiny_folder: Path) -> Callable[..., Workbench]:
    """Load the tiny model afresh, in float32 on the CPU unless told otherwise; `tuner` names what is trained."""
    from learner.families.load import EVERYTHING, load_model, load_tokenizer

    def load(
        attn_impl: str = "auto", dtype: str = "float32", tuner: TunerSection = EVERYTHING, device: str = "cpu"
    ) -> Workbench:
        loaded = load_model(str(tiny_folder), dtype=dtype, attn_impl=attn_impl, device=device, tuner=tuner)
        tokenizer = load_tokenizer(str(tiny_folder))
        return Workbench(loaded, tokenizer, CoordinateVocabulary.from_tokenizer(tokenizer))

    return load


@pytest.fixture
def workbench(workbench_of: Callable[..., Workbench]) -> Workbench:
    return workbench_of()


def packed(*samples: TrainingSample, capacity: int = 4096) -> Pack[TrainingSample]:
    return Pack(samples, sum(sample.num_tokens for sample in samples), capacity)


def totals_of(*samples: TrainingSample) -> StepTotals:
    weight = sum(sample.target.ce_denominator for sample in samples) / len(samples)
    return StepTotals(len(samples), max(1, sum(len(sample.target.boxes) for sample in samples)), weight)


@pytest.fixture
def pack_of() -> Callable[..., Pack[TrainingSample]]:
    return packed


@pytest.fixture
def step_totals_of() -> Callable[..., StepTotals]:
    return totals_of


@pytest.fixture(scope="session")
def encoder(checkpoint: Path) -> Encoder:
    """The encoder of the checkpoint that test servers serve."""
    from learner.data.encoding import Encoder
    from learner.data.images import ImageReader
    from learner.families.load import load_tokenizer

    return Encoder(
        load_tokenizer(str(checkpoint)), ImageReader.from_checkpoint(checkpoint), system="", user_prompt="Detect."
    )


@pytest.fixture
def requests_of(encoder: Encoder, image: Callable[..., bytes], tmp_path: Path) -> Callable[[int], list[RolloutRequest]]:
    """Make requests for images of noise, `data:1` and on, each with one object."""
    from learner.types import RolloutRequest

    def make(count: int) -> list[RolloutRequest]:
        requests = []
        for number in range(1, count + 1):
            path = tmp_path / f"{number}.png"
            path.write_bytes(image(number))
            objects = (GroundTruthObject("cat", "bbox_2d", (100, 200, 300, 400)),)
            record = Record(f"data:{number}", (str(path),), 64, 64, objects)
            requests.append(RolloutRequest(encoder.encode_now(record), seed=number))
        return requests

    return make


@pytest.fixture
def config_of(checkpoint: Path, tmp_path: Path) -> Callable[..., Config]:
    """Load a small Stage-2 configuration with overrides."""
    values = {
        "global_max_length": 512,
        "model": {"model": str(checkpoint), "dtype": "float32"},
        "template": {"system": ""},
        "training": {"output_dir": str(tmp_path / "run"), "effective_batch_size": 4, "per_device_train_batch_size": 4},
        "custom": {
            "user_prompt": "Detect.",
            "trainer_variant": "stage2_ab_training",
            "train_jsonl": "none.jsonl",
            "extra": {
                "stage2_ab": {"schedule": {"pattern": ["A", "A", "B"]}},
                "rollout_matching": {
                    "rollout_backend": "hf",
                    "max_new_tokens": 16,
                    "vllm": {"sync": {"weights_root": str(tmp_path / "weights")}},
                },
            },
        },
    }

    def load(*overrides: str) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_config(path, overrides)

    return load


@pytest.fixture
def answers(shapes: Path, checkpoint: Path) -> dict[str, list[int]]:
    """For each record an answer that has its first object and misses the others."""
    from learner.families.load import load_tokenizer

    vocabulary = CoordinateVocabulary.from_tokenizer(load_tokenizer(str(checkpoint)))
    return {
        record.record_id: vocabulary.encode(answer_text(record.objects[:1]) + "<|im_end|>")
        for name in ("train", "val")
        for record in read_records(shapes / f"{name}.jsonl")
    }


@pytest.fixture
def opened(
    serving: Any, scripted: Any, config_of: Callable[..., Config], answers: dict[str, list[int]], shapes: Path,
    tmp_path: Path,
) -> Callable[..., AbstractAsyncContextManager[Run]]:  # fmt: skip
    """Open a run beside a server that plays this script: three steps A, A, B of four records unless told otherwise."""
    from rich.console import Console

    from learner.build import open_run

    @asynccontextmanager
    async def run(*overrides: str, **script: Any) -> AsyncIterator[Run]:
        settings = scripted({"answers": answers, **script}, weights_root=tmp_path / "weights")
        (tmp_path / "weights").mkdir(exist_ok=True)
        with serving(settings) as running:
            config = config_of(
                f"custom.train_jsonl={shapes / 'train.jsonl'}",
                f"custom.val_jsonl={shapes / 'val.jsonl'}",
                f"custom.extra.rollout_matching.vllm.server.servers=[{{base_url: '{running.url}'}}]",
                "custom.extra.rollout_matching.max_new_tokens=100",
                "training.max_steps=3",
                "training.logging_steps=1",
                *overrides,
            )
            async with open_run(config, Console(file=io.StringIO()), config.training.output_dir) as opened_run:
                yield opened_run

    return run


@pytest.fixture(scope="session")
def sampling(checkpoint: Path, encoder: Encoder) -> Sampling:
    """Up to six tokens, and none of the prompt's placeholders."""
    from learner.families.load import load_tokenizer

    tokenizer = load_tokenizer(str(checkpoint))
    placeholders = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    return Sampling(max_new_tokens=6, stop_token_ids=(7,), banned_token_ids=tuple(placeholders))

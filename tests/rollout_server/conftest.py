"""Requests in the ids of the tiny checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
import yaml

from shared.wire import InlineImage, RolloutBatch, RolloutSample, Sampling

STOP_ID = 7


@dataclass(frozen=True)
class TinyPrompts:
    """Requests in the ids of the tiny checkpoint."""

    image_id: int
    start_id: int
    end_id: int
    video_id: int
    image: Callable[..., bytes]

    def ids(self, num_text: int = 5) -> tuple[int, ...]:
        """A prompt with one image and `num_text` words."""
        return (self.start_id, self.image_id, self.end_id, *range(20, 20 + num_text))

    def sampling(self, max_new_tokens: int = 12, **options: object) -> Sampling:
        banned = (self.image_id, self.video_id)
        return Sampling(max_new_tokens=max_new_tokens, stop_token_ids=(STOP_ID,), banned_token_ids=banned, **options)

    def batch(self, *uids: str, batch_id: str = "b", **options: object) -> RolloutBatch:
        samples = tuple(
            RolloutSample(uid=uid, prompt_token_ids=self.ids(), images=(InlineImage(data=self.image(seed)),), seed=seed)
            for seed, uid in enumerate(uids)
        )
        return RolloutBatch(**{"batch_id": batch_id, "sampling": self.sampling(), "samples": samples, **options})


@pytest.fixture(scope="session")
def prompts(checkpoint: Path, image: Callable[..., bytes]) -> TinyPrompts:
    config = orjson.loads((checkpoint / "config.json").read_bytes())
    return TinyPrompts(
        config["image_token_id"],
        config["vision_start_token_id"],
        config["vision_end_token_id"],
        config["video_token_id"],
        image,
    )


@pytest.fixture(scope="session")
def config_file_in(checkpoint: Path) -> Callable[[Path], Path]:
    """Write the configuration of a run whose servers use the tiny checkpoint into a folder."""

    def write(folder: Path) -> Path:
        (folder / "train.jsonl").touch()
        values = {
            "global_max_length": 300,
            "model": {"model": str(checkpoint)},
            "training": {
                "output_dir": str(folder / "out"),
                "packing": True,
                "effective_batch_size": 4,
                "max_steps": 3,
                "dataloader_drop_last": True,
                "learning_rate": 0.001,
            },
            "custom": {
                "trainer_variant": "stage2_ab_training",
                "train_jsonl": str(folder / "train.jsonl"),
                "extra": {
                    "stage2_ab": {"schedule": {"pattern": ["A", "B"]}},
                    "rollout_matching": {"rollout_backend": "hf", "max_new_tokens": 16},
                },
            },
        }
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return write


@pytest.fixture
def config_file(config_file_in: Callable[[Path], Path], tmp_path: Path) -> Path:
    return config_file_in(tmp_path)

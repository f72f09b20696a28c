"""A record on its way to the model: encoded once, then joined with its target."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.detection.record import Record
from learner.detection.targets import Target


@dataclass(frozen=True)
class EncodedImage:
    """One image, oriented and resized to a size that both processes' processors leave as it is.

    `pixel_values` is float32 [num_patches, patch_dim] as the vision tower takes it, `grid` is (t, h, w) in patches,
    `png` is the same image as a losslessly encoded file, which is what a rollout server is sent.
    """

    pixel_values: NDArray[np.float32]
    grid: tuple[int, int, int]
    png: bytes


@dataclass(frozen=True)
class EncodedRecord:
    """A record with its prompt in ids.

    `request_token_ids` holds one image placeholder (what a server is sent), `prompt_token_ids` holds the expanded ones.
    """

    record: Record
    request_token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    image: EncodedImage


@dataclass(frozen=True)
class TrainingSample:
    """A target with the image it talks about: what packs are made of."""

    target: Target
    image: EncodedImage

    @property
    def num_tokens(self) -> int:
        return self.target.num_tokens

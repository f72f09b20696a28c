"""The rows of the 1000 coordinate tokens in embeddings and head: how they begin, and whether they can be told apart."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from learner.detection.vocabulary import NUM_BINS
from shared.config.training import TunerSection
from shared.errors import ConfigError

MATRICES = {"embed_tokens.weight": "embeddings", "lm_head.weight": "head"}
"""What the two are called, by the ends of their names in a checkpoint; a tied head is not in it."""

SMALLEST_SPREAD = 0.01
"""Below it rows are one row with noise. Means of a vocabulary, which resizing gives by default, have 3e-5, rounding to
bfloat16 adds less than 0.001; rows that are smooth in the bin have about 1, and trained ones more."""

NUM_OTHERS = 1000
"""Rows of other tokens that the coordinates are compared with."""


def coordinate_rows(dim: int) -> Tensor:
    """Sinusoidal rows [1000, dim] of unit length: wavelengths from 2000 down to 8 bins (Vaswani et al. 2017, 3.5)."""
    wavelengths = torch.logspace(math.log10(2 * NUM_BINS), math.log10(8), dim // 2, dtype=torch.float64)
    angles = 2 * math.pi * torch.arange(NUM_BINS, dtype=torch.float64)[:, None] / wavelengths
    rows: Tensor = torch.cat([angles.sin(), angles.cos()], dim=1) / (dim // 2) ** 0.5
    return rows.float()


@torch.no_grad()
def write_coordinate_rows(matrix: Tensor, coordinate_ids: Sequence[int], num_known: int) -> float:
    """Make the rows of the coordinate tokens in `matrix` [vocabulary, dim] sinusoids of the bin.

    They get the root mean square of the first `num_known` rows, those of tokens that were there before; it is returned.
    """
    squares = sum(float(chunk.float().square().sum()) for chunk in matrix[:num_known].split(2**14))
    rms = math.sqrt(squares / (num_known * matrix.shape[1]))
    rows = coordinate_rows(matrix.shape[1]) * (rms * matrix.shape[1] ** 0.5)
    matrix[torch.tensor(coordinate_ids)] = rows.to(matrix)
    return rms


def indistinct_matrices(folder: Path, coordinate_ids: Sequence[int]) -> tuple[str, ...]:
    """Which of a checkpoint's matrices have coordinate rows that cannot be told apart: `embeddings`, `head`.

    Looks at a few thousand rows of its safetensors files. What is not there to be read is not in doubt.
    """
    stored = _stored_rows(folder, coordinate_ids)
    return tuple(sorted(kind for kind, rows, others in stored if _are_one(rows, others)))


def check_coordinate_rows(folder: Path, coordinate_ids: Sequence[int], tuner: TunerSection) -> str:
    """What there is to warn of about a checkpoint's coordinate rows; empty when they can be told apart.

    Raises ConfigError where adapters are trained: nothing would ever tell such rows apart.
    """
    kinds = indistinct_matrices(folder, coordinate_ids)
    if not kinds:
        return ""
    told = (
        f"model.model: the coordinate tokens of {folder} cannot be told apart, their rows in the "
        f"{' and the '.join(kinds)} are all one, as plain resizing leaves them"
    )
    cure = f"make them anew by `boxloop init {folder} --out DIR` and start from DIR"
    if tuner.train_type == "lora":
        raise ConfigError(f"{told}, and tuner.train_type lora cannot teach them apart; {cure}")
    return f"{told}; it takes long to train them apart: {cure}"


def _stored_rows(folder: Path, coordinate_ids: Sequence[int]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each matrix in a checkpoint: its kind, its coordinate rows [1000, dim], and some rows of other tokens."""
    first, end = min(coordinate_ids), max(coordinate_ids) + 1
    wanted = torch.tensor(coordinate_ids) - first
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118  # it is no dict
                    kind = next((kind for ending, kind in MATRICES.items() if name.endswith(ending)), None)
                    if kind is not None:
                        matrix = stored.get_slice(name)
                        if matrix.get_shape()[0] >= end:
                            yield kind, matrix[first:end][wanted].float(), matrix[: min(first, NUM_OTHERS)].float()
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"model.model: {file} cannot be read: {error}") from error


def _are_one(rows: Tensor, others: Tensor) -> bool:
    return _spread(rows) < SMALLEST_SPREAD * _spread(others)


def _spread(rows: Tensor) -> float:
    """Root mean square of the rows' differences from their mean; 0 of none."""
    return float((rows - rows.mean(0)).square().mean().sqrt()) if len(rows) else 0.0

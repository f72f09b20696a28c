"""From a pack of targets to the tensors of one forward pass."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.detection.targets import Target
from learner.model.batch import Ints, Layout, PackedBatch
from learner.packing.packer import Pack
from learner.types import TrainingSample
from shared.errors import DataError


@dataclass(frozen=True)
class _Supervision:
    """What one target teaches, by positions in its own token ids."""

    positions: Ints
    labels: Ints
    ce_weights: NDArray[np.float32]
    box_slots: Ints
    box_bins: Ints


def collate(
    pack: Pack[TrainingSample], *, image_token_id: int, pad_token_id: int, merge_size: int, layout: Layout
) -> PackedBatch:
    """Lay out a pack. Loss and gradient do not depend on `layout` (see docs/numerics.md).

    Raises DataError, naming the record, when a target's image placeholders do not fit its image.
    """
    targets, images = [sample.target for sample in pack.items], [sample.image for sample in pack.items]
    tokens = [np.asarray(target.token_ids, dtype=np.int64) for target in targets]
    rope = [
        rope_positions(ids, image.grid, image_token_id, merge_size, target.record_id)
        for ids, image, target in zip(tokens, images, targets, strict=True)
    ]
    borders = np.cumsum([0, *map(len, tokens)])
    flat = layout == "flat"
    input_ids = torch.from_numpy(_laid_out(tokens, flat, pad_token_id))
    position_ids = np.stack([_laid_out([each[axis] for each in rope], flat, 0) for axis in range(3)])
    taught = [_supervision(target, ids) for target, ids in zip(targets, tokens, strict=True)]
    counts = [len(each.positions) for each in taught]
    rows, columns = (np.zeros_like(counts), borders[:-1]) if flat else (np.arange(len(counts)), np.zeros_like(counts))
    slots = np.cumsum([0, *counts])[:-1]
    return PackedBatch(
        record_ids=tuple(target.record_id for target in targets),
        layout=layout,
        input_ids=input_ids,
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(borders.astype(np.int32)),
        max_seqlen=max(map(len, tokens)),
        image_positions=(input_ids == image_token_id).flatten().nonzero()[:, 0],
        pixel_values=_joined([image.pixel_values for image in images]),
        image_grid=torch.tensor([image.grid for image in images]),
        predictor_rows=torch.from_numpy(np.repeat(rows, counts)),
        predictor_columns=_joined([each.positions - 1 + first for each, first in zip(taught, columns, strict=True)]),
        labels=_joined([each.labels for each in taught]),
        ce_weights=_joined([each.ce_weights for each in taught]),
        box_slots=_joined([each.box_slots + first for each, first in zip(taught, slots, strict=True)]),
        box_bins=_joined([each.box_bins for each in taught]),
    )


def rope_positions(
    token_ids: Ints, grid: tuple[int, int, int], image_token_id: int, merge_size: int, name: str
) -> Ints:
    """Multimodal rotary positions [3, tokens] of one target with one image, as Qwen3-VL counts them.

    Text counts on in all three; an image holds its start in time and adds its row and column; the text after it goes on
    behind the image's longer side. Equal to the model's `get_rope_index`. Raises DataError naming `name` when the
    placeholders are not one run as long as the grid.
    """
    t, h, w = grid[0], grid[1] // merge_size, grid[2] // merge_size
    places = np.flatnonzero(token_ids == image_token_id)
    if len(places) != t * h * w or places[-1] - places[0] + 1 != len(places):
        raise DataError(
            f"{name}: the image of {grid} patches needs one run of {t * h * w} image placeholders, "
            f"but the prompt holds {len(places)}; encode prompt and image with one processor"
        )
    start = int(places[0])
    positions = np.empty((3, len(token_ids)), dtype=np.int64)
    positions[:, :start] = np.arange(start)
    positions[:, places] = np.indices((t, h, w)).reshape(3, -1) + start
    tail = len(token_ids) - start - len(places)
    positions[:, start + len(places) :] = np.arange(tail) + start + max(h, w)
    return positions


def _supervision(target: Target, token_ids: Ints) -> _Supervision:
    """Join cross-entropy and box positions, so that a position of both is computed once."""
    ce_positions = np.asarray(target.ce_positions, dtype=np.int64)
    slots = np.array([positions for positions, _ in target.boxes], dtype=np.int64).reshape(-1)
    positions, places = np.unique(np.concatenate([ce_positions, slots]), return_inverse=True)
    weights = np.zeros(len(positions), dtype=np.float32)
    weights[places[: len(ce_positions)]] = np.asarray(target.ce_weights, dtype=np.float64) / target.ce_denominator
    return _Supervision(
        positions=positions,
        labels=token_ids[positions],
        ce_weights=weights,
        box_slots=places[len(ce_positions) :].reshape(-1, 4).astype(np.int64),
        box_bins=np.array([bins for _, bins in target.boxes], dtype=np.int64).reshape(-1, 4),
    )


def _laid_out(rows: list[Ints], flat: bool, fill: int) -> Ints:
    """One row of all, or one row each, filled up on the right."""
    if flat:
        return np.concatenate(rows)[None]
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _joined(arrays: list[NDArray[np.int64]] | list[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))

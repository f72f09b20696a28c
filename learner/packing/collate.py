"""From a pack of targets to the tensors of one forward pass."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.detection.targets import Target
from learner.model.batch import Ints, Layout, PackedBatch
from learner.model.loaded import LoadedModel
from learner.packing.packer import Pack
from learner.types import Grid, TrainingSample
from shared.errors import DataError


@dataclass(frozen=True)
class _Supervision:
    """What one target teaches, by positions in its own token ids."""

    positions: Ints
    labels: Ints
    ce_weights: NDArray[np.float32]
    box_slots: Ints
    box_bins: Ints
    sampled: NDArray[np.bool_]
    advantages: NDArray[np.float32]
    served_logprobs: NDArray[np.float32]


def collate(
    pack: Pack[TrainingSample], loaded: LoadedModel, *, pad_token_id: int, layout: Layout | None = None
) -> PackedBatch:
    """Lay out a pack for a model, on the host. Loss and gradient do not depend on `layout` (see docs/numerics.md).

    None = the layout that suits the model's device. Raises DataError, naming the record, when a target's image
    placeholders do not fit its image.
    """
    layout = layout or loaded.layout
    targets, images = [sample.target for sample in pack.items], [sample.image for sample in pack.items]
    tokens = [np.asarray(target.token_ids, dtype=np.int64) for target in targets]
    rotary = [
        _positions(loaded, ids, image.grid, target.record_id)
        for ids, image, target in zip(tokens, images, targets, strict=True)
    ]
    borders = np.cumsum([0, *map(len, tokens)])
    flat = layout == "flat"
    input_ids = torch.from_numpy(_laid_out(tokens, flat, pad_token_id))
    position_ids = np.stack([_laid_out(list(axis), flat, 0) for axis in zip(*rotary, strict=True)])
    image_grid = torch.tensor([image.grid for image in images])
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
        image_positions=(input_ids == loaded.image_token_id).flatten().nonzero()[:, 0],
        pixel_values=_joined([image.pixel_values for image in images]),
        image_grid=image_grid,
        patches=loaded.family.lay_out_patches(loaded.model, image_grid),
        predictor_rows=torch.from_numpy(np.repeat(rows, counts)),
        predictor_columns=_joined([each.positions - 1 + first for each, first in zip(taught, columns, strict=True)]),
        labels=_joined([each.labels for each in taught]),
        ce_weights=_joined([each.ce_weights for each in taught]),
        box_slots=_joined([each.box_slots + first for each, first in zip(taught, slots, strict=True)]),
        box_bins=_joined([each.box_bins for each in taught]),
        sampled=_joined([each.sampled for each in taught]),
        advantages=_joined([each.advantages for each in taught]),
        served_logprobs=_joined([each.served_logprobs for each in taught]),
        num_answers=sum(bool(target.sampled_positions) for target in targets),
        num_sampled_tokens=sum(len(target.sampled_positions) for target in targets),
    )


def _positions(loaded: LoadedModel, token_ids: Ints, grid: Grid, record_id: str) -> Ints:
    """Rotary positions [axes, tokens] of one target."""
    try:
        return loaded.family.positions(loaded.model, token_ids, grid)
    except DataError as error:
        raise DataError(f"{record_id}: {error}") from error


def _supervision(target: Target, token_ids: Ints) -> _Supervision:
    """Join the positions of all terms, so that one of several is computed once."""
    own = [np.asarray(positions, dtype=np.int64) for positions in (target.ce_positions, target.sampled_positions)]
    slots = np.array([positions for positions, _ in target.boxes], dtype=np.int64).reshape(-1)
    positions, places = np.unique(np.concatenate([*own, slots]), return_inverse=True)
    of_ce, of_sampled, of_slots = np.split(places, np.cumsum([len(each) for each in own]))
    weights, advantages = np.zeros((2, len(positions)), dtype=np.float32)
    weights[of_ce] = target.ce_weights
    sampled = np.zeros(len(positions), dtype=np.bool_)
    sampled[of_sampled] = True
    advantages[of_sampled] = target.advantages
    served_logprobs = np.full(len(positions), np.nan, dtype=np.float32)
    if target.served_logprobs:
        served_logprobs[of_sampled] = target.served_logprobs
    return _Supervision(
        positions=positions,
        labels=token_ids[positions],
        ce_weights=weights,
        box_slots=of_slots.reshape(-1, 4).astype(np.int64),
        box_bins=np.array([bins for _, bins in target.boxes], dtype=np.int64).reshape(-1, 4),
        sampled=sampled,
        advantages=advantages,
        served_logprobs=served_logprobs,
    )


def _laid_out(rows: list[Ints], flat: bool, fill: int) -> Ints:
    """One row of all, or one row each, filled up on the right."""
    if flat:
        return np.concatenate(rows)[None]
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _joined(arrays: list[NDArray[np.int64]] | list[NDArray[np.float32]] | list[NDArray[np.bool_]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))

"""Soft context changes coordinate slots and nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from learner.channels.expectation import soften_context
from learner.model.batch import PackedBatch
from learner.model.forward import embed, encode_images
from learner.packing.collate import collate


@pytest.fixture
def batch(workbench: Any, pack_of: Any) -> PackedBatch:
    return collate(
        pack_of(workbench.sample(0, 3), workbench.sample(1, 0), workbench.sample(2, 1)),
        workbench.loaded,
        pad_token_id=workbench.tokenizer.pad_token_id,
        layout="rows",
    )


def softened(
    bench: Any, batch: PackedBatch, passes: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    images = encode_images(bench.loaded, batch)
    embeds = embed(bench.loaded, batch, images)
    ids = bench.coordinate_ids
    return embeds, soften_context(bench.loaded, batch, embeds, images, ids, num_passes=passes, temperature=temperature)


def slot_mask(batch: PackedBatch) -> Tensor:
    mask = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    slots = batch.box_slots.flatten()
    mask[batch.predictor_rows[slots], batch.predictor_columns[slots] + 1] = True
    return mask


def test_all_rows_but_coordinate_slots_keep_their_bits(workbench: Any, batch: PackedBatch) -> None:
    embeds, soft = softened(workbench, batch, 2)
    slots = slot_mask(batch)
    assert slots.sum() == 16
    assert not slots.flatten()[batch.image_positions].any()
    assert soft[~slots].equal(embeds[~slots])
    assert (soft[slots] != embeds[slots]).any(-1).all()


def test_slots_have_no_gradient_and_all_else_does(workbench: Any, batch: PackedBatch) -> None:
    embeds, soft = softened(workbench, batch, 1)
    (gradient,) = torch.autograd.grad(soft.sum(), embeds)
    assert gradient.ne(0).any(-1).equal(~slot_mask(batch))


def test_a_low_temperature_reads_the_likeliest_coordinate(workbench: Any, batch: PackedBatch) -> None:
    _, soft = softened(workbench, batch, 1, temperature=1e-4)
    table = workbench.loaded.model.get_input_embeddings()(workbench.coordinate_ids)
    distance = torch.cdist(soft[slot_mask(batch)], table).amin(-1)
    assert distance.max() < 1e-2 * table.norm(dim=-1).mean()

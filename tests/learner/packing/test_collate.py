"""Collation: where tokens, positions, labels and boxes of a pack land in its tensors."""

from dataclasses import replace
from typing import Any

import pytest

from learner.model.batch import Layout, PackedBatch
from learner.packing.collate import collate
from shared.errors import DataError


def collated(bench: Any, pack: Any, layout: Layout) -> PackedBatch:
    return collate(pack, bench.loaded, pad_token_id=bench.tokenizer.pad_token_id, layout=layout)


def test_a_target_that_does_not_fit_its_image_is_named(workbench: Any, pack_of: Any) -> None:
    sample = workbench.sample(7, 1, grid=(1, 8, 8))
    other = replace(sample, image=workbench.sample(7, 1, grid=(1, 4, 8)).image)
    with pytest.raises(DataError, match=r"made:7: the image of \(1, 4, 8\) patches needs one run of 8 .* holds 16"):
        collated(workbench, pack_of(other), "rows")


@pytest.mark.parametrize("layout", ["rows", "flat"])
def test_every_supervised_token_is_predicted_from_the_one_before_it(
    workbench: Any, pack_of: Any, layout: Layout
) -> None:
    samples = [workbench.sample(seed, count) for seed, count in ((0, 3), (1, 0), (2, 1))]
    batch = collated(workbench, pack_of(*samples), layout)
    following = batch.input_ids[batch.predictor_rows, batch.predictor_columns + 1]
    assert following.equal(batch.labels)
    expected = [
        sample.target.token_ids[place]
        for sample in samples
        for place in sorted({*sample.target.ce_positions, *(p for places, _ in sample.target.boxes for p in places)})
    ]
    assert batch.labels.tolist() == expected


@pytest.mark.parametrize("layout", ["rows", "flat"])
def test_box_slots_point_at_their_own_coordinate_tokens(workbench: Any, pack_of: Any, layout: Layout) -> None:
    samples = [workbench.sample(seed, count) for seed, count in ((0, 3), (1, 0), (2, 1))]
    batch = collated(workbench, pack_of(*samples), layout)
    assert batch.box_bins.tolist() == [list(bins) for sample in samples for _, bins in sample.target.boxes]
    assert batch.labels[batch.box_slots].equal(workbench.coordinate_ids[batch.box_bins])


def test_a_token_weighs_the_same_in_a_short_answer_and_a_long_one(workbench: Any, pack_of: Any) -> None:
    samples = [workbench.sample(0, count, desc_ce_weight=4.0) for count in (1, 6)]
    batch = collated(workbench, pack_of(*samples), "rows")
    for row, sample in enumerate(samples):
        weights = batch.ce_weights[batch.predictor_rows == row]
        assert weights[weights > 0].tolist() == list(sample.target.ce_weights)


def test_a_coordinate_with_cross_entropy_and_a_box_is_one_position(workbench: Any, pack_of: Any) -> None:
    plain, both = workbench.sample(0, 2), workbench.sample(0, 2, coord_ce_weight=1.0)
    batches = [collated(workbench, pack_of(sample), "rows") for sample in (plain, both)]
    assert batches[0].labels.equal(batches[1].labels)
    slots = batches[0].box_slots.flatten()
    assert batches[0].ce_weights[slots].eq(0).all()
    assert batches[1].ce_weights[slots].gt(0).all()


def test_flat_rows_hold_no_padding_and_know_their_borders(workbench: Any, pack_of: Any) -> None:
    samples = [workbench.sample(seed, 1) for seed in range(3)]
    batch = collated(workbench, pack_of(*samples), "flat")
    lengths = [sample.num_tokens for sample in samples]
    assert batch.input_ids.shape == (1, sum(lengths))
    assert batch.cu_seqlens.diff().tolist() == lengths
    assert batch.position_ids[:, 0, batch.cu_seqlens[:-1]].eq(0).all()

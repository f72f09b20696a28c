"""Targets that share a pack don't see each other."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.model.forward import at_predictors, embed, encode_images, hidden_states
from learner.model.head import logits
from learner.packing.collate import Layout, collate


def scores_by_target(bench: Any, pack: Any, layout: Layout) -> list[Tensor]:
    """The logits of each target's supervised tokens."""
    batch = collate(
        pack,
        image_token_id=bench.loaded.image_token_id,
        pad_token_id=bench.tokenizer.pad_token_id,
        merge_size=bench.loaded.merge_size,
        layout=layout,
    )
    with torch.no_grad():
        images = encode_images(bench.loaded, batch)
        hidden = hidden_states(bench.loaded, batch, embed(bench.loaded, batch, images), images)
        scores = logits(bench.loaded, at_predictors(batch, hidden))
    counts = [len(each.target.ce_positions) + 4 * len(each.target.boxes) for each in pack.items]
    return list(scores.split(counts))


def otherwise(sample: Any) -> Any:
    """The same target with another image, other words in its prompt and in its answer."""
    ids = tuple(token + 1 if token < 300 else token for token in sample.target.token_ids)
    assert ids != sample.target.token_ids
    image = replace(sample.image, pixel_values=-sample.image.pixel_values.astype(np.float32))
    return replace(sample, target=replace(sample.target, token_ids=ids), image=image)


@pytest.mark.parametrize("changed", [0, 1, 2])
@pytest.mark.parametrize("layout", ["rows", "flat"])
@pytest.mark.parametrize("attn_impl", ["auto", "sdpa", "eager"])
def test_what_one_target_says_moves_no_logit_of_another(
    workbench_of: Callable[..., Any], pack_of: Any, attn_impl: str, layout: Layout, changed: int
) -> None:
    bench = workbench_of(attn_impl)
    samples = [bench.sample(0, 2), bench.sample(1, 3), bench.sample(2, 1)]
    before = scores_by_target(bench, pack_of(*samples), layout)
    samples[changed] = otherwise(samples[changed])
    after = scores_by_target(bench, pack_of(*samples), layout)
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        if place == changed:
            assert float((new - old).abs().max()) > 0.1
        else:
            torch.testing.assert_close(new, old, rtol=0, atol=1e-5)

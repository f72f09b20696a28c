"""Targets that share a pack don't see each other."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.model.batch import Layout
from learner.model.forward import at_predictors, embed, encode_images, hidden_states
from learner.model.head import logits
from learner.packing.collate import collate

NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
ATTENTIONS = [
    *((name, "float32", "cpu") for name in ("auto", "sdpa", "eager")),
    *(
        pytest.param(name, dtype, "cuda", marks=NEEDS_GPU)
        for name, dtype in (("sdpa", "float32"), ("varlen", "bfloat16"), ("flash_attention_2", "bfloat16"))
    ),
]


def scores_by_target(bench: Any, pack: Any, layout: Layout) -> list[Tensor]:
    """The logits of each target's supervised tokens."""
    batch = collate(pack, bench.loaded, pad_token_id=bench.tokenizer.pad_token_id, layout=layout).to(
        bench.loaded.device
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
@pytest.mark.parametrize(("attn_impl", "dtype", "device"), ATTENTIONS)
def test_what_one_target_says_moves_no_logit_of_another(
    workbench_of: Callable[..., Any], pack_of: Any, attn_impl: str, dtype: str, device: str, layout: Layout,
    changed: int,
) -> None:  # fmt: skip
    if attn_impl == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="needs flash-attn")
    bench = workbench_of(attn_impl, dtype, device=device)
    samples = [bench.sample(0, 2), bench.sample(1, 3), bench.sample(2, 1)]
    before = scores_by_target(bench, pack_of(*samples), layout)
    samples[changed] = otherwise(samples[changed])
    after = scores_by_target(bench, pack_of(*samples), layout)
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        if place == changed:
            assert float((new - old).abs().max()) > 0.1
        else:
            torch.testing.assert_close(new, old, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("attn_impl", "dtype", "device"), ATTENTIONS)
def test_a_target_has_the_logits_in_a_pack_that_it_has_alone(
    workbench_of: Callable[..., Any], pack_of: Any, attn_impl: str, dtype: str, device: str
) -> None:
    """With images of several sizes, and against plain matrix products in float32 on a CPU."""
    if attn_impl == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="needs flash-attn")
    bench, plain = workbench_of(attn_impl, dtype, device=device), workbench_of()
    samples = [bench.sample(0, 2), bench.sample(1, 3, grid=(1, 4, 8)), bench.sample(2, 1, grid=(1, 12, 8))]
    alone = [scores_by_target(plain, pack_of(sample), "rows")[0] for sample in samples]
    limit = 1e-4 if dtype == "float32" else 0.05
    for layout in ("rows", "flat"):
        for found, expected in zip(scores_by_target(bench, pack_of(*samples), layout), alone, strict=True):
            assert float((found.cpu() - expected).norm()) <= limit * float(expected.norm())

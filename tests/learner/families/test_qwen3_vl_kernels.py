"""Exchanged kernels give what transformers' own give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText


def outputs(model: Any, grids: list[list[int]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of one prompt on images of these grids, and all gradients of their sum of squares."""
    random = torch.Generator().manual_seed(0)
    tokens = [g[1] * g[2] // 4 for g in grids]
    ids = torch.tensor([[20, *[t for n in tokens for t in [*[model.config.image_token_id] * n, 30]], *range(40, 60)]])
    patches = torch.randn(sum(g[1] * g[2] for g in grids), 1536, generator=random)
    types = (ids == model.config.image_token_id).int()
    logits = model(
        input_ids=ids,
        pixel_values=patches,
        image_grid_thw=torch.tensor(grids),
        mm_token_type_ids=types,
        use_cache=False,
    ).logits
    model.zero_grad()
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("grids", [[[1, 8, 8]] * 3, [[1, 8, 8], [1, 4, 6]]], ids=["one size", "two sizes"])
@pytest.mark.parametrize("plain", ["eager", "sdpa"])
def test_outputs_and_gradients_equal_plain_transformers(
    workbench_of: Callable[..., Any], tiny_folder: Path, plain: str, grids: list[list[int]]
) -> None:
    theirs = AutoModelForImageTextToText.from_pretrained(tiny_folder, attn_implementation=plain).train()
    ours = workbench_of().loaded.model
    logits, gradients = outputs(ours, grids)
    expected, expected_gradients = outputs(theirs, grids)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert float((gradients[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-12, name


def test_weights_keep_their_names_and_values(workbench: Any, tiny_folder: Path) -> None:
    theirs = AutoModelForImageTextToText.from_pretrained(tiny_folder).state_dict()
    ours = workbench.loaded.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())

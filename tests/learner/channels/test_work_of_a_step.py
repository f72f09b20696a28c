"""What three passes over a pack compute, and what they leave out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass
from learner.model import chunked_head
from learner.model.batch import Layout, PackedBatch
from learner.packing.collate import collate
from shared.config.stage2 import Stage2Section

NUM_PASSES = 3
LAST = NUM_PASSES
PRODUCTS = tuple(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm", "linear"))


@dataclass(frozen=True)
class Product:
    """A matrix product in the course of a step: the pass it belongs to and the shape of what it makes."""

    number: int
    shape: tuple[int, ...]
    by_head: bool


class Products(TorchDispatchMode):
    """Notes every matrix product, and which of them multiply the head's matrix itself or a part of it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.seen: list[Product] = []
        self._head = model.get_output_embeddings().weight.untyped_storage().data_ptr()
        self._pass = 0
        model.model.language_model.register_forward_pre_hook(self._next_pass)

    def _next_pass(self, *_: Any) -> None:
        self._pass += 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function in PRODUCTS:
            by_head = any(isinstance(a, Tensor) and a.untyped_storage().data_ptr() == self._head for a in args)
            self.seen.append(Product(self._pass, tuple(made.shape), by_head))
        return made


@pytest.fixture(params=["rows", "flat"])
def batch(request: pytest.FixtureRequest, workbench: Any, pack_of: Callable[..., Any]) -> PackedBatch:
    layout: Layout = request.param
    return collate(
        pack_of(workbench.sample(0, 3), workbench.sample(1, 0), workbench.sample(2, 1)),
        workbench.loaded,
        pad_token_id=workbench.tokenizer.pad_token_id,
        layout=layout,
    )


@pytest.fixture
def step(workbench: Any, batch: PackedBatch, step_totals_of: Callable[..., Any]) -> Callable[[], None]:
    """The forward and backward pass of Channel A."""
    objective = Expectation(LastPass(Stage2Section(), workbench.coordinate_ids), NUM_PASSES)
    totals = step_totals_of(workbench.sample(0, 3), workbench.sample(1, 0), workbench.sample(2, 1))
    return lambda: objective(workbench.loaded, batch, totals).total.backward()


def test_images_are_encoded_once_for_all_passes(workbench: Any, step: Callable[[], None]) -> None:
    model, calls = workbench.loaded.model.model, {"visual": 0, "language_model": 0}

    def counted(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    for name in calls:
        getattr(model, name).register_forward_hook(counted(name))
    step()
    assert calls == {"visual": 1, "language_model": NUM_PASSES}


def test_early_passes_multiply_coordinate_rows_at_slots_alone_and_the_last_one_blocks_at_supervised_positions(
    workbench: Any, batch: PackedBatch, step: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workbench.loaded.model.config.text_config
    num_supervised, num_slots = len(batch.labels), batch.box_slots.numel()
    block_bytes = 4 * num_supervised * 100
    monkeypatch.setattr(chunked_head, "BLOCK_BYTES", block_bytes)
    with Products(workbench.loaded.model) as products:
        step()

    assert num_slots < num_supervised < batch.input_ids.numel()
    assert all(config.vocab_size not in each.shape for each in products.seen)
    for number in range(1, LAST):
        early = [each for each in products.seen if each.number == number]
        assert not any(each.by_head for each in early)
        assert [each.shape for each in early if 1000 in each.shape] == [(num_slots, 1000)]
    by_head = [each.shape for each in products.seen if each.by_head]
    logits = [shape for shape in by_head if shape[1] != config.hidden_size]
    assert all(shape[0] == num_supervised for shape in by_head)
    assert all(4 * rows * tokens <= block_bytes for rows, tokens in logits)
    assert sum(tokens for _, tokens in logits) == 2 * config.vocab_size  # once forward, once backward

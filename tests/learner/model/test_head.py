"""The head in chunks gives what the head in one piece gives, whatever is done to it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from learner.model import chunked_head
from learner.model import head as head_module
from learner.model.batch import PackedBatch
from learner.model.head import TokenScores, bare_head, coordinate_logits, logits, token_scores
from learner.packing.collate import collate

HIDDEN = 128


@pytest.fixture
def batch(workbench: Any, pack_of: Any) -> PackedBatch:
    return collate(
        pack_of(workbench.sample(0, 3), workbench.sample(1, 0), workbench.sample(2, 1)),
        workbench.loaded,
        pad_token_id=workbench.tokenizer.pad_token_id,
        layout="rows",
    )


@pytest.fixture(params=[1, 7, 10_000])
def rows_at_once(request: pytest.FixtureRequest, workbench: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make the head score no more logits at a time than this many rows have."""
    num_bytes = request.param * 4 * workbench.loaded.model.config.text_config.vocab_size
    monkeypatch.setattr(head_module, "CHUNK_BYTES", num_bytes)
    monkeypatch.setattr(chunked_head, "BLOCK_BYTES", num_bytes)
    return int(request.param)


def watched(head: nn.Linear) -> None:
    head.register_forward_hook(lambda module, inputs, output: output * 2)


def biased(head: nn.Linear) -> None:
    head.bias = nn.Parameter(torch.randn(head.out_features))


def renormed(head: nn.Linear) -> None:
    nn.utils.parametrizations.weight_norm(head)


def left_bare(head: nn.Linear) -> None:
    pass


def loss_of(scores: TokenScores) -> Tensor:
    """A number that every score has a different slope in."""
    parts = (scores.log_normalisers, scores.labels, scores.boxes.flatten())
    return sum(
        ((part * torch.linspace(-1, 2, part.numel())).sum() + part.sin().sum() for part in parts), torch.zeros(())
    )


def whole_scores(bench: Any, hidden: Tensor, batch: PackedBatch) -> TokenScores:
    scores = logits(bench.loaded, hidden)
    labels = scores.gather(1, batch.labels[:, None])[:, 0]
    return TokenScores(scores.logsumexp(-1), labels, scores[batch.box_slots][..., bench.coordinate_ids])


@pytest.mark.parametrize("change", [left_bare, watched, biased, renormed])
def test_scores_and_gradients_are_those_of_all_logits(
    workbench: Any, batch: PackedBatch, rows_at_once: int, change: Callable[[nn.Linear], None]
) -> None:
    head = workbench.loaded.model.get_output_embeddings()
    change(head)
    assert (bare_head(workbench.loaded) is head) == (change is left_bare)
    found: list[list[Tensor]] = []
    for score in (token_scores, None):
        torch.manual_seed(0)
        hidden = torch.randn(len(batch.labels), HIDDEN, requires_grad=True)
        scores = (
            token_scores(workbench.loaded, hidden, batch, workbench.coordinate_ids)
            if score
            else whole_scores(workbench, hidden, batch)
        )
        trained = [hidden, *head.parameters()]
        gradients = torch.autograd.grad(loss_of(scores), trained)
        found.append([scores.log_normalisers, scores.labels, scores.boxes, *gradients])
    for ours, expected in zip(*found, strict=True):
        assert float((ours - expected).detach().norm()) <= 1e-5 * float(expected.detach().norm())


def test_a_frozen_head_has_no_gradient_and_passes_it_on(workbench: Any, batch: PackedBatch) -> None:
    head = workbench.loaded.model.get_output_embeddings()
    hidden = torch.randn(len(batch.labels), HIDDEN, requires_grad=True)
    trained = torch.autograd.grad(
        loss_of(token_scores(workbench.loaded, hidden, batch, workbench.coordinate_ids)), hidden
    )
    head.requires_grad_(False)
    loss_of(token_scores(workbench.loaded, hidden, batch, workbench.coordinate_ids)).backward()
    assert head.weight.grad is None
    assert hidden.grad is not None
    assert hidden.grad.equal(trained[0])


class LargestLogits(TorchDispatchMode):
    """Notes the most numbers that a matrix product makes which are neither hidden rows nor rows of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default and HIDDEN not in made.shape:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("change", [left_bare, watched])
def test_no_more_logits_are_made_at_once_than_the_bound_allows(
    workbench: Any, batch: PackedBatch, rows_at_once: int, change: Callable[[nn.Linear], None]
) -> None:
    head = workbench.loaded.model.get_output_embeddings()
    change(head)
    hidden = torch.randn(len(batch.labels), HIDDEN, requires_grad=True)
    with LargestLogits() as seen:
        loss_of(token_scores(workbench.loaded, hidden, batch, workbench.coordinate_ids)).backward()
    num_slots = batch.box_slots.numel()
    assert 0 < seen.numbers <= max(min(rows_at_once, len(batch.labels)) * head.out_features, num_slots * 1000)


@pytest.mark.parametrize("change", [left_bare, watched])
def test_coordinate_logits_are_columns_of_all_logits(
    workbench: Any, rows_at_once: int, change: Callable[[nn.Linear], None]
) -> None:
    change(workbench.loaded.model.get_output_embeddings())
    for num_rows in (0, 5):
        hidden = torch.randn(num_rows, HIDDEN)
        whole = logits(workbench.loaded, hidden)[:, workbench.coordinate_ids]
        torch.testing.assert_close(coordinate_logits(workbench.loaded, hidden, workbench.coordinate_ids), whole)

"""From hidden rows to what the losses need of their logits, which are never all there at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.model.batch import PackedBatch
from learner.model.chunked_head import ChunkedHead
from learner.model.loaded import LoadedModel
from learner.model.trained_rows import RowsLinear, current_weight

CHUNK_BYTES = 128 * 2**20
"""Most bytes of float32 logits that a head is called for at a time, where it has to be called."""


@dataclass(frozen=True)
class TokenScores:
    """Of the logits [S, vocabulary] of a pack's supervised positions, what its losses read; all float32."""

    log_normalisers: Tensor
    """[S]: logsumexp over the vocabulary"""
    labels: Tensor
    """[S]: the logit of the supervised token"""
    boxes: Tensor
    """[b, 4, 1000]: the logits of the coordinate tokens, in bin order, where a box is supervised"""


def token_scores(loaded: LoadedModel, hidden: Tensor, batch: PackedBatch, coordinate_ids: Tensor) -> TokenScores:
    """Score the hidden rows [S, hidden] that predict a pack's supervised tokens."""
    head = bare_head(loaded)
    if head is None:
        return _scores_of_any_head(loaded, hidden, batch, coordinate_ids)
    normalisers, labels, slots = ChunkedHead.apply(  # type: ignore[no-untyped-call]
        hidden,
        current_weight(head),
        batch.labels,
        batch.box_slots.flatten(),
        coordinate_ids,
        loaded.compute_dtype,
        head.trained_rows if isinstance(head, RowsLinear) else None,  # they are those of the coordinate tokens
    )
    return TokenScores(normalisers, labels, slots.unflatten(0, batch.box_slots.shape))


def coordinate_logits(loaded: LoadedModel, hidden: Tensor, coordinate_ids: Tensor) -> Tensor:
    """Float32 logits [rows, 1000] of the coordinate tokens alone; of a bare head no other row is multiplied."""
    head = bare_head(loaded)
    if head is None:
        return torch.cat([logits(loaded, hidden[chunk])[:, coordinate_ids] for chunk in _chunks(loaded, hidden)])
    with loaded.autocast():
        return nn.functional.linear(hidden, current_weight(head)[coordinate_ids]).float()


def logits(loaded: LoadedModel, hidden: Tensor) -> Tensor:
    """Float32 logits [rows, vocabulary] of hidden rows; the head is called as the module it is."""
    with loaded.autocast():
        scores: Tensor = loaded.model.get_output_embeddings()(hidden)
    return scores.float()


def bare_head(loaded: LoadedModel) -> nn.Linear | None:
    """The head if it is nothing but its matrix.

    None for one that is wrapped, watched or has a bias: that has to be called whole, so that adapters and hooks have
    their say.
    """
    head = loaded.model.get_output_embeddings()
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return head if type(head) in (nn.Linear, RowsLinear) and head.bias is None and not any(hooks) else None


def _scores_of_any_head(loaded: LoadedModel, hidden: Tensor, batch: PackedBatch, coordinate_ids: Tensor) -> TokenScores:
    """The same by calling the head, chunk by chunk and once more in the backward pass."""

    def scored(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = logits(loaded, rows)
        return scores.logsumexp(-1), scores.gather(1, labels[:, None])[:, 0], scores[:, coordinate_ids]

    parts = [
        checkpoint(scored, hidden[chunk], batch.labels[chunk], use_reentrant=False) for chunk in _chunks(loaded, hidden)
    ]
    normalisers, labels, coordinates = (torch.cat(each) for each in zip(*parts, strict=True))
    return TokenScores(normalisers, labels, coordinates[batch.box_slots])


def _chunks(loaded: LoadedModel, hidden: Tensor) -> Iterator[slice]:
    """Cut rows into slices whose logits take at most CHUNK_BYTES; one slice even of no rows."""
    size = max(1, CHUNK_BYTES // (4 * loaded.model.config.text_config.vocab_size))
    for start in range(0, max(1, len(hidden)), size):
        yield slice(start, start + size)

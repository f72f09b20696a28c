"""A linear head whose [rows, vocabulary] logits never exist at once: a block of the vocabulary at a time.

The forward pass keeps a normaliser for each row and no logits; the backward pass multiplies each block a second time.
One matrix product in four is a repeated one, and still this is the fastest way that was tried: a block of logits stays
in a CPU's cache from its product to its last use, and each row of the weight's gradient is written once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 16 * 2**20
"""Most bytes of a block's float32 logits."""


def blocks(num_rows: int, vocabulary_size: int) -> Iterator[slice]:
    """Cut the vocabulary into slices of at least one token, whose logits of all rows take at most BLOCK_BYTES."""
    size = max(1, BLOCK_BYTES // (4 * max(1, num_rows)))
    for start in range(0, vocabulary_size, size):
        yield slice(start, min(start + size, vocabulary_size))


class ChunkedHead(torch.autograd.Function):
    """(hidden, weight, labels, slots, columns, dtype, trained) -> (log-normalisers, label logits, slot logits).

    `hidden` is [S, hidden] and `weight` [vocabulary, hidden]. For every row the logsumexp over the vocabulary [S] and
    the logit of its label (int64 [S]) are returned [S], all in float32; for the rows `slots` (int64 [K]) the logits of
    the tokens `columns` (int64 [C]) as well [K, C]. Matrix products run in `dtype`. Gradients reach `hidden` and
    `weight`; where only the rows `columns` of `weight` are trained, `trained` [C, hidden] takes theirs, else None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        slots: Tensor,
        columns: Tensor,
        dtype: torch.dtype,
        trained: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        normalisers = torch.full(labels.shape, -torch.inf, device=rows.device)
        of_labels = torch.zeros_like(normalisers)
        for block in blocks(len(rows), len(matrix)):
            logits = (rows @ matrix[block].T).float()
            normalisers = torch.logaddexp(normalisers, logits.logsumexp(-1))
            place, is_inside = _place(labels, block)
            of_labels = torch.where(is_inside, logits.gather(1, place[:, None])[:, 0], of_labels)
        ctx.save_for_backward(hidden, weight, labels, slots, columns, normalisers)
        ctx.dtype = dtype
        return normalisers, of_labels, (rows[slots] @ matrix[columns].T).float()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_normalisers: Tensor, to_labels: Tensor, to_slots: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None, None, Tensor | None]:
        """∂logits = softmax · ∂normaliser, plus ∂label at the label and ∂slot at the slot's columns."""
        hidden, weight, labels, slots, columns, normalisers = ctx.saved_tensors
        rows, matrix = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        to_rows = torch.zeros(rows.shape, device=rows.device)
        to_weight = torch.empty(weight.shape, device=rows.device) if ctx.needs_input_grad[1] else None
        for block in blocks(len(rows), len(matrix)):
            slopes = (rows @ matrix[block].T).float()
            slopes.sub_(normalisers[:, None]).exp_().mul_(to_normalisers[:, None])
            place, is_inside = _place(labels, block)
            slopes.scatter_add_(1, place[:, None], torch.where(is_inside, to_labels, 0)[:, None])
            slopes = slopes.to(ctx.dtype)
            to_rows += slopes @ matrix[block]
            if to_weight is not None:
                to_weight[block] = slopes.T @ rows
        slopes = to_slots.to(ctx.dtype)
        to_rows.index_add_(0, slots, (slopes @ matrix[columns]).float())
        if to_weight is not None:
            to_weight.index_add_(0, columns, (slopes.T @ rows[slots]).float())
            to_weight = to_weight.to(weight.dtype)
        to_trained = None
        if ctx.needs_input_grad[6]:
            to_trained = (slopes.T @ rows[slots]).float()
            slopes = (rows @ matrix[columns].T).float()
            slopes.sub_(normalisers[:, None]).exp_().mul_(to_normalisers[:, None])
            slopes += torch.where(labels[:, None] == columns, to_labels[:, None], 0)
            to_trained += (slopes.to(ctx.dtype).T @ rows).float()
        return to_rows.to(hidden.dtype), to_weight, None, None, None, None, to_trained


def _place(labels: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Where in a block the labels stand, and which of them do; those that do not are given some place."""
    is_inside = (labels >= block.start) & (labels < block.stop)
    return (labels - block.start).clamp(0, block.stop - block.start - 1), is_inside

"""A linear head whose [rows, vocabulary] logits never exist at once: a chunk of rows at a time, forth and back.

The forward pass keeps one normaliser a row and no logits; the backward pass multiplies each chunk a second time. One
matrix product in four is a repeated one, and still it takes less time than keeping all logits, or than
`torch.utils.checkpoint` over the same chunks: nothing as large as the logits is written, read back and freed.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 128 * 2**20
"""Most bytes of a chunk's float32 logits: little enough to be had anywhere, rows enough for full matrix products."""


def row_chunks(num_rows: int, vocabulary_size: int) -> Iterator[slice]:
    """Cut rows into slices whose float32 logits take at most CHUNK_BYTES; one slice even of no rows."""
    size = max(1, CHUNK_BYTES // (4 * vocabulary_size))
    for start in range(0, max(1, num_rows), size):
        yield slice(start, start + size)


class ChunkedHead(torch.autograd.Function):
    """(hidden, weight, labels, slots, columns, dtype) -> (log-normalisers, label logits, slot logits), all float32.

    `hidden` is [S, hidden] and `weight` [vocabulary, hidden]. For every row the logsumexp over the vocabulary [S] and
    the logit of its label (int64 [S]) are returned [S]; for the rows `slots` (int64 [K]) the logits of the tokens
    `columns` (int64 [C]) as well [K, C]. Matrix products run in `dtype`. Gradients reach `hidden` and `weight`.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, slots: Tensor, columns: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, matrix = hidden.to(dtype), weight.to(dtype)
        normalisers = torch.empty(len(rows), device=rows.device)
        of_labels = torch.empty_like(normalisers)
        for chunk in row_chunks(len(rows), len(matrix)):
            logits = (rows[chunk] @ matrix.T).float()
            normalisers[chunk] = logits.logsumexp(-1)
            of_labels[chunk] = logits.gather(1, labels[chunk, None])[:, 0]
        ctx.save_for_backward(hidden, weight, labels, slots, columns, normalisers)
        ctx.dtype = dtype
        return normalisers, of_labels, (rows[slots] @ matrix[columns].T).float()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_normalisers: Tensor, to_labels: Tensor, to_slots: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        """∂logits = softmax · ∂normaliser, plus ∂label at the label and ∂slot at the slot's columns."""
        hidden, weight, labels, slots, columns, normalisers = ctx.saved_tensors
        rows, matrix = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        to_rows = torch.empty(rows.shape, device=rows.device)
        to_weight = torch.zeros(weight.shape, device=rows.device) if ctx.needs_input_grad[1] else None
        for chunk in row_chunks(len(rows), len(matrix)):
            slopes = (rows[chunk] @ matrix.T).float()
            slopes.sub_(normalisers[chunk, None]).exp_().mul_(to_normalisers[chunk, None])
            slopes.scatter_add_(1, labels[chunk, None], to_labels[chunk, None])
            slopes = slopes.to(ctx.dtype)
            to_rows[chunk] = (slopes @ matrix).float()
            if to_weight is not None:
                _add_product(to_weight, slopes.T, rows[chunk])
        slopes = to_slots.to(ctx.dtype)
        to_rows.index_add_(0, slots, (slopes @ matrix[columns]).float())
        if to_weight is not None:
            to_weight.index_add_(0, columns, (slopes.T @ rows[slots]).float())
            to_weight = to_weight.to(weight.dtype)
        return to_rows.to(hidden.dtype), to_weight, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right, without a product of its own where all are of one type."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right

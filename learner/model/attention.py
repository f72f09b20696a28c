"""Attention kernels beside transformers' own, registered with it by name, for whatever family of models.

`matmul` is for a CPU: plain matrix products, because the backward pass of the fused kernel is slow in bfloat16.
`varlen` is for 16-bit types on a GPU: torch's own flash kernels inside each target of a pack, or each image. It
makes no [tokens, tokens] mask, and computes nothing between two targets.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from shared.errors import ConfigError

MATMUL_ATTENTION = "matmul"
"""Name of `matmul_attention` in transformers' registry."""
VARLEN_ATTENTION = "varlen"
"""Name of `varlen_attention` in transformers' registry."""


def matmul_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention for transformers' registry.

    `query` is [batch, heads, queries, dim], `key` and `value` are [batch, kv heads, keys, dim], an additive mask is
    broadcast to [batch, heads, queries, keys]. Returns [batch, queries, heads, dim]. Heads that share keys are stacked
    along the queries, so keys and values are never repeated.
    """
    batch, heads, queries, dim = query.shape
    kv_heads, keys = key.shape[1:3]
    stacked = query.reshape(batch, kv_heads, -1, dim)
    scores = (stacked @ key.transpose(2, 3) * scaling).view(batch, heads, queries, keys)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    weights = functional.dropout(weights, dropout, module.training)
    mixed = weights.view(batch, kv_heads, -1, keys) @ value
    return mixed.view(batch, heads, queries, dim).transpose(1, 2).contiguous(), None


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention for transformers' registry.

    `query` is [rows, heads, tokens, dim], `key` and `value` are [rows, kv heads, tokens, dim]. `cu_seq_lens_q` (int32
    [n + 1]) are the borders of targets in the tokens of all rows, the longest of `max_length_q`. Returns [rows, tokens,
    heads, dim]. Raises ConfigError for a checkpoint with attention dropout, which the kernels do not have.
    """
    if dropout:
        raise ConfigError(f"model.attn_impl: {VARLEN_ATTENTION} has no attention dropout ({dropout}); use sdpa")
    tokens, tokens_k, tokens_v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    mixed = attend_within(tokens, tokens_k, tokens_v, cu_seq_lens_q, max_length_q, scaling, is_causal=True)
    return mixed.unflatten(0, (query.shape[0], -1)), None


def attend_within(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scaling: float, *, is_causal: bool
) -> Tensor:
    """Attend inside segments: `query` and the result are [tokens, heads, dim], the others [tokens, kv heads, dim].

    All is computed in the type of `value`, which comes straight from a matrix product; norms leave the others float32.
    """
    mixed = varlen_attn(
        query.to(value.dtype),
        key.to(value.dtype),
        value,
        borders,
        borders,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0) if is_causal else (-1, -1),
        enable_gqa=True,
    )
    assert isinstance(mixed, Tensor)  # it could be asked for the normalisers too
    return mixed


AttentionInterface.register(MATMUL_ATTENTION, matmul_attention)
AttentionMaskInterface.register(MATMUL_ATTENTION, eager_mask)
AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)

"""Attention inside each target of a pack, or each image, by torch's own flash kernels: 16-bit types on a GPU.

No [tokens, tokens] mask is made, and nothing is computed between two targets.
"""

from typing import Any

from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from shared.errors import ConfigError

VARLEN_ATTENTION = "varlen"
"""Name of `varlen_attention` in transformers' registry."""


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


AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)

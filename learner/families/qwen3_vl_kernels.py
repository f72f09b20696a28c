"""Other kernels of Qwen3-VL for the same mathematics, where transformers' own are slow in training.

Weights and their names stay as they are; so do results, up to rounding. What is exchanged, and why:

- vision attention over all images at once, on a CPU when they are of one size: transformers takes them one by one;
- the patch embedding as a matrix product: its convolution's windows do not overlap;
- deepstack features added at known places: a mask is searched for its places while the host waits for the device.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextModel,
    Qwen3VLVisionAttention,
    Qwen3VLVisionPatchEmbed,
    apply_rotary_pos_emb_vision,
)

from learner.model.attention import MATMUL_ATTENTION, VARLEN_ATTENTION, attend_within, matmul_attention
from learner.model.family import VisionLanguageModel


def exchange_kernels(model: VisionLanguageModel) -> None:
    """Put these kernels into a model, in place."""
    model.model.language_model.__class__ = IndexedDeepstackModel
    tower = model.model.visual
    tower.patch_embed.__class__ = LinearPatchEmbed
    for block in tower.blocks:
        block.attn.__class__ = BatchedVisionAttention


class BatchedVisionAttention(Qwen3VLVisionAttention):  # type: ignore[misc]
    """Vision attention that takes all images at once: by flash kernels, or where they have equally many patches."""

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: Any = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        attention, num_patches = self.config._attn_implementation, hidden_states.shape[0]
        if attention == VARLEN_ATTENTION:
            states, longest = self._turned(hidden_states, position_embeddings), max_seqlen or cu_seqlens.diff().max()
            mixed = attend_within(*states, cu_seqlens, int(longest), self.scaling, is_causal=False)
        elif attention == MATMUL_ATTENTION and bool((cu_seqlens.diff() == cu_seqlens[1]).all()):
            per_image = (len(cu_seqlens) - 1, -1, self.num_heads, self.head_dim)
            states = self._turned(hidden_states, position_embeddings)
            query, key, value = (each.view(per_image).transpose(1, 2) for each in states)
            mixed, _ = matmul_attention(self, query, key, value, None, self.scaling)
        else:
            theirs: Tensor = super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
            return theirs
        projected: Tensor = self.proj(mixed.reshape(num_patches, -1))
        return projected

    def _turned(self, hidden_states: Tensor, position_embeddings: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [patches, heads, dim], turned to where their patches stand."""
        query, key, value = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, self.head_dim)).unbind(1)
        return *apply_rotary_pos_emb_vision(query, key, *position_embeddings), value


class LinearPatchEmbed(Qwen3VLVisionPatchEmbed):  # type: ignore[misc]
    """The patch embedding as one matrix product."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.proj.weight
        return functional.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)


class IndexedDeepstackModel(Qwen3VLTextModel):  # type: ignore[misc]
    """The decoder, which also takes the places of image placeholders [P] in [batch · tokens] for their mask."""

    def _deepstack_process(self, hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        if visual_pos_masks.dtype == torch.bool:
            masked: Tensor = super()._deepstack_process(hidden_states, visual_pos_masks, visual_embeds)
            return masked
        added = hidden_states.flatten(0, 1).index_add(0, visual_pos_masks, visual_embeds.to(hidden_states.dtype))
        return added.view_as(hidden_states)

"""The pieces of a forward pass, so that passes over one pack can share what does not change between them."""

from typing import Any

import torch
from torch import Tensor

from learner.model.attention import VARLEN_ATTENTION
from learner.model.batch import ImageFeatures, PackedBatch
from learner.model.loaded import LoadedModel


def encode_images(loaded: LoadedModel, batch: PackedBatch) -> ImageFeatures:
    """Run the vision tower over all images of a pack."""
    with loaded.autocast():
        return loaded.family.encode_images(loaded.model, batch)


def embed(loaded: LoadedModel, batch: PackedBatch, images: ImageFeatures) -> Tensor:
    """Input embeddings [R, T, hidden] in float32, image placeholders filled with their features."""
    embeds: Tensor = loaded.model.get_input_embeddings()(batch.input_ids).float()
    filled = embeds.flatten(0, 1).index_copy(0, batch.image_positions, images.embeds.to(embeds.dtype))
    return filled.view_as(embeds)


def hidden_states(loaded: LoadedModel, batch: PackedBatch, embeds: Tensor, images: ImageFeatures) -> Tensor:
    """Run the decoder over input embeddings; returns its normalised last layer [R, T, hidden]."""
    attention = _attention_arguments(loaded, batch, embeds.dtype)
    with loaded.autocast():
        return loaded.family.hidden_states(loaded.model, batch, embeds, images, attention)


def at_predictors(batch: PackedBatch, hidden: Tensor) -> Tensor:
    """The rows [S, hidden] that predict the supervised tokens."""
    return hidden[batch.predictor_rows, batch.predictor_columns]


def _attention_arguments(loaded: LoadedModel, batch: PackedBatch, dtype: torch.dtype) -> dict[str, Any]:
    """How the attention in use is told that a token sees its own target up to itself.

    In padded rows that is plain causality: padding stands behind all that could see it.
    """
    if loaded.attn_impl == VARLEN_ATTENTION:
        borders, longest = _segments(batch)
        return {"attention_mask": None, "cu_seq_lens_q": borders, "max_length_q": longest}
    if "flash" in loaded.attn_impl:
        if batch.layout == "rows":
            return {"attention_mask": None}
        lengths = {"cu_seq_lens_q": batch.cu_seqlens, "cu_seq_lens_k": batch.cu_seqlens}
        return {"attention_mask": None, **lengths, "max_length_q": batch.max_seqlen, "max_length_k": batch.max_seqlen}
    visible = _visible(batch)[None, None]
    if loaded.attn_impl == "sdpa":
        return {"attention_mask": visible}
    nothing = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return {"attention_mask": nothing.masked_fill(~visible, torch.finfo(dtype).min)}


def _segments(batch: PackedBatch) -> tuple[Tensor, int]:
    """Where segments begin in the tokens of all rows (int32 [n + 1]), and the length of the longest."""
    if batch.layout == "flat":
        return batch.cu_seqlens, batch.max_seqlen
    rows, columns = batch.input_ids.shape
    return torch.arange(rows + 1, dtype=torch.int32, device=batch.input_ids.device) * columns, columns


def _visible(batch: PackedBatch) -> Tensor:
    """Which columns [T, T] a column of any row sees."""
    columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    causal = columns[:, None] >= columns
    if batch.layout == "rows":
        return causal
    target = torch.bucketize(columns, batch.cu_seqlens[1:-1], right=True)
    return causal & (target[:, None] == target)

"""A training step as it is usually written: transformers' own model, all logits, its own shifted float32 loss."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from learner.model.batch import PackedBatch


class PlainTrainer:
    """A checkpoint as transformers loads it: float32 weights, products in `dtype`, attention by default."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(device).train()
        self.device = device
        self.dtype = dtype

    def step(self, inputs: dict[str, Tensor]) -> Tensor:
        """One forward and backward pass; returns the mean cross-entropy of the labels."""
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss: Tensor = self.model(**inputs, use_cache=False).loss
        loss.backward()
        return loss.detach()

    def inputs(self, batch: PackedBatch) -> dict[str, Tensor]:
        """The padded rows of a batch as the model's arguments, labels where the batch is supervised."""
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.predictor_rows, batch.predictor_columns + 1] = batch.labels
        columns = torch.arange(batch.input_ids.shape[1])
        made = {
            "input_ids": batch.input_ids,
            "labels": labels,
            "attention_mask": (columns < batch.cu_seqlens.diff()[:, None]).long(),
            "mm_token_type_ids": (batch.input_ids == self.model.config.image_token_id).int(),
            "pixel_values": batch.pixel_values,
            "image_grid_thw": batch.image_grid,
        }
        return {name: tensor.to(self.device) for name, tensor in made.items()}

"""Soft context: coordinate tokens are read as the expectation of their embedding under the model's own prediction."""

import torch
from torch import Tensor

from learner.model.batch import PackedBatch
from learner.model.forward import ImageFeatures, hidden_states
from learner.model.head import coordinate_logits
from learner.model.loaded import LoadedModel


def soft_context(
    loaded: LoadedModel,
    batch: PackedBatch,
    embeds: Tensor,
    images: ImageFeatures,
    coordinate_ids: Tensor,
    *,
    num_passes: int,
    temperature: float,
) -> Tensor:
    """Input embeddings [R, T, hidden] after `num_passes` rounds of softening; with 0 they are `embeds` itself.

    In each round the embedding at slot p becomes softmax(z[p-1][coordinates] / temperature) @ E, all slots at once,
    where z comes from the round before and E holds the embeddings of the 1000 coordinate tokens. Nothing of it has a
    gradient; all rows but the slots keep theirs, and their values bit by bit.
    """
    if num_passes == 0:
        return embeds
    slots = batch.box_slots.flatten()
    rows, predictors = batch.predictor_rows[slots], batch.predictor_columns[slots]
    softened = embeds.detach()
    with torch.no_grad():
        table = loaded.model.get_input_embeddings()(coordinate_ids).float()
        still = images.detach()
        for _ in range(num_passes):
            hidden = hidden_states(loaded, batch, softened, still)[rows, predictors]
            scores = coordinate_logits(loaded, hidden, coordinate_ids)
            expected = torch.softmax(scores / temperature, dim=-1) @ table
            softened = softened.index_put((rows, predictors + 1), expected.to(softened.dtype))
    return embeds.index_put((rows, predictors + 1), softened[rows, predictors + 1])

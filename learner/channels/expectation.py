"""Channel A: the ground truth, read through the model's own idea of each coordinate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.channels.channel import StepKind, StepParts
from learner.channels.last_pass import LastPass
from learner.channels.teacher_forcing import GroundTruthSteps
from learner.losses.terms import PackLoss
from learner.model.batch import ImageFeatures, PackedBatch
from learner.model.forward import embed, encode_images, hidden_states
from learner.model.head import coordinate_logits
from learner.model.loaded import LoadedModel
from learner.plan.step_plan import StepTotals


@dataclass(frozen=True)
class Expectation:
    """`num_passes` passes (n_softctx_iter ≥ 1), of which only the last has a gradient; 1 is plain teacher forcing."""

    last_pass: LastPass
    num_passes: int

    def __call__(self, loaded: LoadedModel, batch: PackedBatch, totals: StepTotals) -> PackLoss:
        images = encode_images(loaded, batch)  # once for all passes
        embeds = soften_context(
            loaded,
            batch,
            embed(loaded, batch, images),
            images,
            self.last_pass.coordinate_ids,
            num_passes=self.num_passes - 1,
            temperature=self.last_pass.section.softctx_temperature,
        )
        return self.last_pass(loaded, batch, totals, embeds, images)


def soften_context(
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


def open_steps(parts: StepParts) -> StepKind:
    """Channel A: coordinates are taught by the box and coordinate terms, the words around them by cross-entropy."""
    num_passes = parts.config.stage2.n_softctx_iter
    return GroundTruthSteps(parts.targets, Expectation(parts.last_pass, num_passes))

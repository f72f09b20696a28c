"""The pass that has the gradient, and the objective that is nothing but that pass."""

from dataclasses import dataclass

from torch import Tensor

from learner.losses.terms import PackLoss, loss_of
from learner.model.batch import ImageFeatures, PackedBatch
from learner.model.forward import at_predictors, embed, encode_images, hidden_states
from learner.model.head import token_scores
from learner.model.loaded import LoadedModel
from learner.plan.step_plan import StepTotals
from shared.config.stage2 import Stage2Section


@dataclass(frozen=True)
class LastPass:
    """From input embeddings to a loss. `coordinate_ids` are int64 [1000] in bin order, on the model's device."""

    section: Stage2Section
    coordinate_ids: Tensor

    def __call__(
        self,
        loaded: LoadedModel,
        batch: PackedBatch,
        totals: StepTotals,
        embeds: Tensor,
        images: ImageFeatures,
        temperature: float = 1.0,
    ) -> PackLoss:
        """Decode input embeddings and compare supervised positions, and no others, with their labels.

        Logits are divided by `temperature`, as their hidden rows are: a head has no bias.
        """
        hidden = at_predictors(batch, hidden_states(loaded, batch, embeds, images))
        if temperature != 1.0:
            hidden = hidden / temperature
        return loss_of(token_scores(loaded, hidden, batch, self.coordinate_ids), batch, totals, self.section)


@dataclass(frozen=True)
class SinglePass:
    """One pass over the target as it stands."""

    last_pass: LastPass

    def __call__(self, loaded: LoadedModel, batch: PackedBatch, totals: StepTotals) -> PackLoss:
        images = encode_images(loaded, batch)
        return self.last_pass(loaded, batch, totals, embed(loaded, batch, images), images)

"""Channel A: the ground truth, read through the model's own idea of each coordinate."""

from dataclasses import dataclass

from learner.losses.terms import PackLoss
from learner.model.batch import PackedBatch
from learner.model.forward import embed, encode_images
from learner.model.loaded import LoadedModel
from learner.model.soft_context import soft_context
from learner.objectives.objective import LastPass
from learner.plan.step_plan import StepTotals


@dataclass(frozen=True)
class Expectation:
    """`num_passes` passes (n_softctx_iter ≥ 1), of which only the last has a gradient; 1 is plain teacher forcing."""

    last_pass: LastPass
    num_passes: int

    def __call__(self, loaded: LoadedModel, batch: PackedBatch, totals: StepTotals) -> PackLoss:
        images = encode_images(loaded, batch)  # once for all passes
        embeds = soft_context(
            loaded,
            batch,
            embed(loaded, batch, images),
            images,
            self.last_pass.coordinate_ids,
            num_passes=self.num_passes - 1,
            temperature=self.last_pass.section.softctx_temperature,
        )
        return self.last_pass(loaded, batch, totals, embeds, images)

"""Stage 1: teacher forcing of the ground truth; its targets put cross-entropy on coordinates too."""

from dataclasses import dataclass

from learner.losses.terms import PackLoss
from learner.model.batch import PackedBatch
from learner.model.forward import embed, encode_images
from learner.model.loaded import LoadedModel
from learner.objectives.objective import LastPass
from learner.plan.step_plan import StepTotals


@dataclass(frozen=True)
class Supervised:
    """One pass over the target as it stands."""

    last_pass: LastPass

    def __call__(self, loaded: LoadedModel, batch: PackedBatch, totals: StepTotals) -> PackLoss:
        images = encode_images(loaded, batch)
        return self.last_pass(loaded, batch, totals, embed(loaded, batch, images), images)

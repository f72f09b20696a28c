"""Leaving whole parts of a model as they are."""

from learner.model.family import VisionLanguageModel
from shared.config.training import TunerSection
from shared.families.facts import FamilyFacts, Part


def frozen_parts(tuner: TunerSection) -> frozenset[Part]:
    """The parts that `freeze_llm`, `freeze_vit` and `freeze_aligner` leave as they are."""
    flags: dict[Part, bool] = {"llm": tuner.freeze_llm, "vit": tuner.freeze_vit, "aligner": tuner.freeze_aligner}
    return frozenset(part for part, frozen in flags.items() if frozen)


def freeze(model: VisionLanguageModel, facts: FamilyFacts, tuner: TunerSection) -> None:
    """Train all weights but those of the frozen parts."""
    frozen = frozen_parts(tuner)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(facts.part_of(name) not in frozen)

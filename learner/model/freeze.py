"""The three parts of a Qwen3-VL, and leaving whole ones as they are."""

from typing import Any, Literal

from shared.config.training import TunerSection

Part = Literal["llm", "vit", "aligner"]


def part_of(name: str) -> Part:
    """Which part of a Qwen3-VL a parameter or module belongs to.

    The mergers are the aligner, the rest of the vision tower is the vit; embeddings and head count as llm.
    """
    if ".visual." not in f".{name}.":
        return "llm"
    return "aligner" if ".merger." in f"{name}." or ".deepstack_merger_list." in f"{name}." else "vit"


def frozen_parts(tuner: TunerSection) -> frozenset[Part]:
    """The parts that `freeze_llm`, `freeze_vit` and `freeze_aligner` leave as they are."""
    flags: dict[Part, bool] = {"llm": tuner.freeze_llm, "vit": tuner.freeze_vit, "aligner": tuner.freeze_aligner}
    return frozenset(part for part, frozen in flags.items() if frozen)


def freeze(model: Any, tuner: TunerSection) -> None:
    """Train all weights but those of the frozen parts."""
    frozen = frozen_parts(tuner)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in frozen)

"""LoRA and DoRA: which modules get an adapter, and putting them in place.

The adapters are PEFT's and are injected in place: the model stays transformers' own module, adapted linear layers
answer to their old names, and everything that calls them goes on as before.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import Tensor, nn

from learner.model.family import VisionLanguageModel
from learner.model.freeze import frozen_parts
from learner.model.trained_rows import ROWS
from shared.config.training import TunerSection
from shared.errors import ConfigError
from shared.families.facts import FamilyFacts

ADAPTER = "default"
"""PEFT's name of a model's only adapter."""

ALL_LINEAR = "all-linear"
BASE = ".base_layer"
"""What PEFT adds to the name of a layer that it adapts."""


@dataclass(frozen=True)
class Adapters:
    """What a LoRA run trains: full names of the modules with an adapter, and of those that are trained whole."""

    tuner: TunerSection
    adapted: tuple[str, ...]
    whole: tuple[str, ...]


def adapters_for(model: VisionLanguageModel, facts: FamilyFacts, tuner: TunerSection) -> Adapters:
    """Read `target_modules` or `target_regex`, `modules_to_save` and the frozen parts against a model.

    Candidates for an adapter are the linear layers of parts that are not frozen, outside of `modules_to_save`; the head
    is never one. A name means every module whose dotted name is it or ends in it; `all-linear` means every candidate; a
    regular expression has to match the whole dotted name. Modules to save are trained wherever they are. Raises
    ConfigError for a name or an expression that matches nothing, with the nearest names.
    """
    modules = dict(model.named_modules())
    whole = _outermost(_named(modules, tuner.modules_to_save, "tuner.modules_to_save", "module"))
    _check_not_tied(model, whole)
    frozen, head = frozen_parts(tuner), model.get_output_embeddings()
    candidates = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear)
        and module is not head
        and facts.part_of(name) not in frozen
        and not _inside(name, whole)
    ]
    return Adapters(tuner, _targets(candidates, tuner), whole)


def peft_config(adapters: Adapters) -> Any:
    """PEFT's LoraConfig of the adapters. Modules to save stay out of it: they are trained where they are."""
    from peft import LoraConfig

    return LoraConfig(
        r=adapters.tuner.lora_rank,
        lora_alpha=adapters.tuner.lora_alpha,  # type: ignore[arg-type]  # PEFT takes fractions too
        lora_dropout=adapters.tuner.lora_dropout,
        use_dora=adapters.tuner.use_dora,
        target_modules=list(adapters.adapted),
    )


def add_adapters(model: VisionLanguageModel, adapters: Adapters, seed: int) -> None:
    """Put fresh adapters on a float32 model; they change nothing yet. All but what is trained is frozen.

    Their initial weights depend on `seed` alone; the process's random numbers go on as if nothing had been drawn.
    """
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config(adapters), cast(nn.Module, model), ADAPTER)
    for name in adapters.whole:
        model.get_submodule(name).requires_grad_(True)


def hold_base_in(model: VisionLanguageModel, dtype: torch.dtype) -> None:
    """Keep the frozen weights of linear layers and of the token embeddings in `dtype`, under fresh adapters.

    Matrix products round them to the compute type in any case, so no float32 master is needed. DoRA's magnitudes are
    measured anew, so that fresh adapters change nothing about the rounded weights either.
    """
    embeddings = model.get_input_embeddings()
    for module in model.modules():
        if (isinstance(module, nn.Linear) or module is embeddings) and not module.weight.requires_grad:
            module.weight.data = module.weight.data.to(dtype)
    for layer in adapted_layers(model).values():
        if ADAPTER in layer.lora_magnitude_vector:
            layer.lora_magnitude_vector[ADAPTER].weight.data = row_norms(layer.base_layer.weight.data.float())


def adapted_layers(model: VisionLanguageModel) -> dict[str, Any]:
    """The adapted linear layers, PEFT's own modules, by the names that the layers had without adapters."""
    names = [name.removesuffix(BASE) for name, _ in model.named_modules() if name.endswith(BASE)]
    return {name: model.get_submodule(name) for name in names}


def plain_name(name: str) -> str | None:
    """The Hugging Face name of a parameter, whether its layer is adapted or not.

    None for an adapter's own, and for rows that are trained alone: their matrix has them.
    """
    return None if f".{ADAPTER}." in name or name.endswith(ROWS) else name.replace(f"{BASE}.", ".")


def row_norms(weight: Tensor) -> Tensor:
    """L2 norms [out] over the inputs of a weight [out, in]: the norm of DoRA (Liu et al., ICML 2024, equation 5)."""
    norms: Tensor = torch.linalg.norm(weight, dim=1)
    return norms


def _targets(candidates: Sequence[str], tuner: TunerSection) -> tuple[str, ...]:
    if tuner.target_regex is not None:
        pattern = re.compile(tuner.target_regex)
        matched = tuple(name for name in candidates if pattern.fullmatch(name))
        if not matched:
            raise ConfigError(
                f"tuner.target_regex: {tuner.target_regex!r} matches none of the {len(candidates)} linear layers that "
                f"may have an adapter; it is matched against whole names such as {next(iter(candidates), 'none')}"
            )
        return matched
    names = [name for name in tuner.target_modules if name != ALL_LINEAR]
    matched = _named(candidates, names, "tuner.target_modules", "linear layer that may have an adapter")
    chosen = candidates if ALL_LINEAR in tuner.target_modules else matched
    if not chosen:
        raise ConfigError(
            "tuner.target_modules: no linear layer may have an adapter; free a part, or train whole modules by "
            "train_type full and freeze_*"
        )
    return tuple(chosen)


def _named(known: Collection[str], wanted: Sequence[str], key: str, kind: str) -> tuple[str, ...]:
    """Those of `known` that a wanted name means, in their own order. Raises ConfigError when one means none."""
    missing = [name for name in wanted if not any(_means(name, each) for each in known)]
    if missing:
        raise ConfigError(f"{key}: {missing[0]!r} names no {kind}; {_nearest(missing[0], known)}")
    return tuple(each for each in known if any(_means(name, each) for name in wanted))


def _means(wanted: str, name: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _nearest(wanted: str, known: Collection[str]) -> str:
    last = wanted.rpartition(".")[2]
    short = dict.fromkeys(name.rpartition(".")[2] for name in known)
    near = get_close_matches(wanted, list(known)) or get_close_matches(last, short, cutoff=0.3)
    return f"nearest are {', '.join(near)}" if near else f"there are {', '.join(short) or 'none'}"


def _outermost(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if not _inside(name.rpartition(".")[0], names))


def _inside(name: str, parents: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{parent}.") for parent in parents)


def _check_not_tied(model: VisionLanguageModel, whole: Collection[str]) -> None:
    """A tied head is the embeddings under a second name; only one name can be trained and saved."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    for name in whole:
        if model.get_submodule(name) is head and head.weight is embeddings.weight:
            raise ConfigError(f"tuner.modules_to_save: {name} is tied to the embeddings; name embed_tokens instead")

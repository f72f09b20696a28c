"""The weights that servers and exports get: plain Hugging Face names, adapters merged into copies."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from learner.model.adapters import ADAPTER, adapted_layers, plain_name, row_norms
from learner.model.family import VisionLanguageModel
from learner.model.loaded import LoadedModel
from learner.model.trained_rows import layers_with_rows, settle_rows


def full_weights(loaded: LoadedModel) -> dict[str, Tensor]:
    """All weights under their Hugging Face names, each once: a head tied to the embeddings is left out.

    What no adapter touches is the learner's own memory, in its own type; the rest is as in `merged_weights`.
    """
    return _weights(loaded.model, None)


def merged_weights(loaded: LoadedModel) -> dict[str, Tensor]:
    """Weights and biases of the modules that training touches, and of those that vLLM fuses with them.

    Touched are adapted modules and those that have trained parameters or rows of their own. Adapters are merged out of
    place in float32, and the sum is cast once, to the type in which the frozen weight is held.
    """
    trained = [plain_name(name) for name, each in loaded.model.named_parameters() if each.requires_grad]
    whole = {_module_of(name) for name in trained if name is not None}
    touched = whole | adapted_layers(loaded.model).keys() | layers_with_rows(loaded.model).keys()
    return _weights(loaded.model, with_fused_siblings(touched, loaded.family.facts.fused))


def with_fused_siblings(modules: Collection[str], fused: Iterable[Collection[str]]) -> frozenset[str]:
    """`modules`, and those that vLLM keeps in one matrix with any of them; `fused` as in FamilyFacts."""
    closed = set(modules)
    for name in modules:
        parent, _, last = name.rpartition(".")
        closed.update(f"{parent}.{sibling}" for group in fused if last in group for sibling in group)
    return frozenset(closed)


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """The weight [out, in] that does alone what an adapted linear layer does; a new tensor in its weight's type.

    LoRA: W + s·B·A, s = alpha / rank (Hu et al., ICLR 2022, section 4.1). DoRA: its rows scaled to the magnitudes m,
    m · (W + s·B·A) / ‖W + s·B·A‖ (Liu et al., ICML 2024, equation 5). In float32.
    """
    weight, down, up = layer.base_layer.weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    merged = torch.addmm(weight.float(), up.float(), down.float(), alpha=layer.scaling[ADAPTER])
    if ADAPTER in layer.lora_magnitude_vector:
        merged *= (layer.lora_magnitude_vector[ADAPTER].weight / row_norms(merged))[:, None]
    return merged.to(weight.dtype)


def _weights(model: VisionLanguageModel, wanted: Collection[str] | None) -> dict[str, Tensor]:
    """The weights of `wanted` modules, None = of all."""
    settle_rows(model)
    adapted = adapted_layers(model)
    weights = {}
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        if plain is None or (wanted is not None and _module_of(plain) not in wanted):
            continue
        layer = adapted.get(_module_of(plain)) if plain.endswith(".weight") else None
        weights[plain] = parameter.detach() if layer is None else merged_weight(layer)
    return weights


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]

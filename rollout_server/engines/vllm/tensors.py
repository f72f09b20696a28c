"""The tensors of a checkpoint under the names that its learner sends."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pkgutil import resolve_name

import torch

from rollout_server.engines.base import ModelTensors
from shared.families.table import facts_in


def checkpoint_tensors(folder: str) -> ModelTensors:
    """What a full update of the checkpoint in `folder` holds; no memory is taken for its values."""
    from transformers import AutoConfig

    facts = facts_in(folder)
    with torch.device("meta"):
        model = resolve_name(facts.transformers_class)(AutoConfig.from_pretrained(folder))
    model.tie_weights()
    shapes: dict[str, tuple[int, ...]] = {}
    tied: dict[str, str] = {}
    first_names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        source = first_names.setdefault(id(tensor), name)
        if source == name:
            shapes[name] = tuple(tensor.shape)
        else:
            tied[name] = source
    return ModelTensors(shapes, tied, fused_groups(shapes, facts.fused))


def fused_groups(names: Iterable[str], fused: Sequence[Sequence[str]]) -> tuple[frozenset[str], ...]:
    """The sets of `names` that stand in one tensor of the engine; `fused` as in FamilyFacts."""
    groups: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for name in names:
        path, _, tensor = name.rpartition(".")
        parent, _, module = path.rpartition(".")
        for index, siblings in enumerate(fused):
            if module in siblings:
                groups[parent, index, tensor].add(name)
    return tuple(frozenset(group) for group in groups.values() if len(group) > 1)

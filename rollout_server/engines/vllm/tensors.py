"""The tensors of a checkpoint under the names that its learner sends."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from rollout_server.engines.base import ModelTensors


def checkpoint_tensors(folder: str, packed_modules: Sequence[Sequence[str]]) -> ModelTensors:
    """What a full update of the Qwen3-VL checkpoint in `folder` holds; no memory is taken for its values.

    `packed_modules` are the modules that vLLM keeps as one, such as `("q_proj", "k_proj", "v_proj")`.
    """
    from transformers import AutoConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
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
    return ModelTensors(shapes, tied, fused_groups(shapes, packed_modules))


def fused_groups(names: Iterable[str], packed_modules: Sequence[Sequence[str]]) -> tuple[frozenset[str], ...]:
    """The sets of `names` that stand in one tensor of the engine."""
    groups: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for name in names:
        path, _, tensor = name.rpartition(".")
        parent, _, module = path.rpartition(".")
        for index, packed in enumerate(packed_modules):
            if module in packed:
                groups[parent, index, tensor].add(name)
    return tuple(frozenset(group) for group in groups.values() if len(group) > 1)

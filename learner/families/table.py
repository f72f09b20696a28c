"""The families that can be trained, by the `model_type` of a checkpoint; `shared.families.table` has their facts."""

from collections.abc import Mapping

from learner.families.qwen3_vl import Qwen3VL
from learner.model.family import Family

FAMILIES: Mapping[str, Family] = {"qwen3_vl": Qwen3VL()}

"""The families that the `hf` engine decodes, by `model_type`; `shared.families.table` has their facts."""

from collections.abc import Mapping

from rollout_server.engines.hf.families.family import DecodedFamily
from rollout_server.engines.hf.families.qwen3_vl import Qwen3VL

FAMILIES: Mapping[str, DecodedFamily] = {"qwen3_vl": Qwen3VL()}

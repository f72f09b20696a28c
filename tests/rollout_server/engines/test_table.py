"""The table of engines has what a configuration may name, and each family what both engines need of it."""

import subprocess
import sys
from typing import get_args

import pytest

from rollout_server.engines.hf.families.table import FAMILIES
from rollout_server.engines.table import ENGINES
from rollout_server.settings import EngineName
from shared.config.rollout import RolloutMatchingSection
from shared.families.table import FACTS


def test_every_backend_that_a_configuration_names_is_an_engine() -> None:
    backends = get_args(RolloutMatchingSection.model_fields["rollout_backend"].annotation)
    assert set(ENGINES) == {*backends, "scripted"} == set(get_args(EngineName))


@pytest.mark.parametrize("engine", ["vllm", "hf"])
def test_building_an_engine_loads_no_library_of_another(engine: str) -> None:
    code = (
        "import sys; from rollout_server.engines.table import ENGINES\n"
        "before = sys.modules.keys() & {'torch', 'vllm'}\n"
        "from rollout_server.settings import ServerSettings, limits_for\n"
        f"ENGINES[{engine!r}](ServerSettings('model', {engine!r}, limits_for(64, 1)))\n"
        "print(*before, *(sys.modules.keys() & {'vllm'}))"
    )
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_every_family_can_be_decoded() -> None:
    assert FAMILIES.keys() == FACTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FACTS)
def test_the_siblings_that_vllm_fuses_are_those_of_the_facts(model_type: str) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    facts = FACTS[model_type]
    module, _, name = facts.vllm_class.partition(":")
    begin = "from shared.companions import tolerate_cuda_builds; tolerate_cuda_builds(); "
    told = f"print(*map(','.join, {name}.packed_modules_mapping.values()), sep='\\n')"
    code = f"{begin}from {module} import {name}; {told}"
    packed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {tuple(names.split(",")) for names in packed if "," in names} == set(facts.fused)

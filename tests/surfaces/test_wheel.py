"""A wheel holds what a run needs, and nothing of ours that acts by itself."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared", "rollout_server", "learner", "compose")
SHIPPED = "configs/stage2_ab/smoke/ab_mixed.yaml"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves its own files where it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*PACKAGES, "configs", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", ".", "--no-deps", "--no-build-isolation", "-w", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.whl")
    return file


def files_of(folder: str, ending: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(f"*{ending}")}


@pytest.mark.slow
def test_it_holds_the_packages_and_the_configurations_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    code = {name for package in PACKAGES for name in files_of(package, ".py")}
    configs = {f"shared/{name}" for name in files_of("configs", ".yaml")}
    fonts = {f"learner/reporting/fonts/{name}" for name in ("unifont.pcf.gz", "LICENSE.txt")}
    assert names - metadata == code | configs | fonts | {f"{package}/py.typed" for package in PACKAGES}


@pytest.mark.slow
def test_nothing_of_it_runs_when_others_are_imported(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert archive.read(entries).decode().split() == ["[console_scripts]", "boxloop", "=", "compose.cli:main"]


@pytest.mark.slow
def test_importing_torch_beside_it_loads_nothing_of_it(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = f"import sys, torch; print(*(name for name in sys.modules if name.partition('.')[0] in {PACKAGES}))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_in_an_empty_folder_a_shipped_configuration_is_found_by_its_name(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    command = [sys.executable, "-m", "compose", "doctor", f"config={SHIPPED}", "model.model=/none"]
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "300"}
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert str(site / "shared" / "configs") in done.stderr + done.stdout
    assert "/none is no folder" in done.stdout

"""One way through the house: no room knows one above it or beside it; what claims to be light loads nothing heavy."""

import subprocess
import sys

import pytest

from tests.architecture.floors import FLOORS, PAGE, ROOT, Arrow, arrows_of, floor_of, page_with_floors, rooms_of

TORCH = frozenset({"torch", "transformers", "peft"})
LIGHT = {
    "compose.cli": TORCH | {"fastapi", "scipy"},
    "learner.channels.channel": TORCH | {"httpx"},
    "learner.decoding.ahead": TORCH,
    "learner.decoding.work_queue": TORCH | {"httpx"},
    "learner.detection.parsing": TORCH | {"httpx", "scipy"},
    "learner.packing.packer": TORCH | {"httpx"},
    "learner.plan.schedule": TORCH | {"httpx", "scipy", "pydantic"},
    "learner.reporting.step_report": TORCH | {"httpx"},
    "learner.stages": TORCH | {"httpx"},
    "learner.train": TORCH | {"httpx"},
    "learner.types": TORCH | {"httpx"},
    "rollout_server.app": TORCH | {"vllm"},
    "rollout_server.launch": TORCH | {"vllm"},
    "shared.config.load": TORCH | {"httpx", "fastapi", "scipy"},
}
"""Modules, and the packages that a process does not hold once it has imported them."""


def goes_down(arrow: Arrow) -> bool:
    here, there = arrow
    return floor_of(there) < floor_of(here)


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_a_floor_and_every_floor_its_rooms(package: str) -> None:
    assert {f"{package}/{name}" for floor in FLOORS[package] for name in floor} == rooms_of(package)


@pytest.mark.parametrize("package", FLOORS)
def test_a_room_knows_lower_rooms_only(package: str) -> None:
    assert {arrow: drawn for arrow, drawn in arrows_of(package).items() if not goes_down(arrow)} == {}


@pytest.mark.parametrize(("module", "heavy"), LIGHT.items())
def test_what_claims_to_be_light_is(module: str, heavy: frozenset[str]) -> None:
    code = f"import sys, {module}; print(*sorted(set({sorted(heavy)}) & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_the_page_has_the_floors_of_today() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_with_floors(), "run: make docs"

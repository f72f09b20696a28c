"""The floors of the house, from the ground up, and the arrows between its rooms.

A room is a folder of a package, or a file beside those folders. A room may import rooms of lower floors of its own
package, and other packages as `MAY_IMPORT` says; nothing else, not even a room beside it.

    python -m tests.architecture.floors        writes the floors into docs/architecture.md
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- floors: printed by `make docs` -->", "<!-- /floors -->"

MAY_IMPORT = {
    "shared": {"shared"},
    "rollout_server": {"rollout_server", "shared"},
    "learner": {"learner", "shared"},
    "compose": {"compose", "shared", "learner.plan"},
}
"""What a package may import of the house: whole packages, or one room of them."""

FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "shared": (
        ("accounting", "companions", "console", "digest", "errors", "extras", "lifeline", "metrics"),
        (
            "access",
            "families",
            "findings",
            "images",
            "listening",
            "run_folder",
            "streams",
            "whole_file",
            "whole_folder",
            "wire",
        ),
        ("weight_wire",),
        ("checkpoint_facts", "config", "framing", "health", "safetensors_header"),
        ("checkpoint_usage", "preflight", "probe", "weights_root"),
    ),
    "rollout_server": (
        ("refusal", "settings"),
        ("admission", "engines", "openapi", "security"),
        ("batch_stream", "stall_watch", "weights"),
        ("metrics",),
        ("app",),
        ("launch",),
        ("preflight", "__main__"),
    ),
    "learner": (
        ("detection",),
        ("plan",),
        ("types",),
        ("data", "servers"),
        ("model",),
        ("families",),
        ("losses", "packing", "weight_sync"),
        ("channels",),
        ("training",),
        ("reporting",),
        ("checkpoints", "decoding"),
        ("evaluation",),
        ("prediction", "stages"),
        ("run",),
        ("build", "once", "train"),
        ("preflight", "__main__"),
    ),
    "compose": (
        ("announcement", "environment", "options", "report"),
        ("process",),
        ("launch_plan", "machine", "model_size", "readiness"),
        ("arguments", "dry_run", "machine_checks", "watch"),
        ("doctor",),
        ("supervisor",),
        ("demo_arms",),
        ("demo", "predict"),
        ("cli",),
        ("__main__",),
    ),
}

Arrow = tuple[str, str]
"""The room that imports, and the one that it imports, as `package/room`."""


@cache
def files() -> tuple[str, ...]:
    """Every module of the house, `__init__` files too."""
    return tuple(sorted(path.relative_to(ROOT).as_posix() for name in FLOORS for path in (ROOT / name).rglob("*.py")))


@cache
def tree_of(file: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def imported_names(file: str) -> Iterator[str]:
    """Dotted names a file imports, wherever in it; `from a import b` gives `a.b`."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(file: str) -> str:
    """The dotted name of a file."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def imports_of(file: str) -> frozenset[str]:
    """The modules of the house that a file imports."""
    modules = {module_of(each) for each in files()}
    targets = {target for name in imported_names(file) for target in (name, name.rpartition(".")[0])}
    return frozenset(target for target in targets & modules if target != module_of(file))


def room_of(module: str) -> str:
    """`learner.data.records` lies in learner/data, `learner.train` is a room of its own."""
    package, _, rest = module.partition(".")
    return f"{package}/{rest.partition('.')[0]}"


def floor_of(room: str) -> int:
    """The height of a room in its package, 0 = on the ground. Raises ValueError for one that the table lacks."""
    package, _, name = room.partition("/")
    for height, rooms in enumerate(FLOORS[package]):
        if name in rooms:
            return height
    raise ValueError(f"{room} stands on no floor; give it a place in FLOORS")


def rooms_of(package: str) -> set[str]:
    """The rooms that a package has."""
    return {room_of(module_of(file)) for file in files() if file.startswith(f"{package}/")} - {f"{package}/"}


def arrows_of(package: str) -> dict[Arrow, list[str]]:
    """The arrows between rooms of one package, each with the files that draw it."""
    arrows: dict[Arrow, list[str]] = {}
    for file in (file for file in files() if file.startswith(f"{package}/")):
        here = room_of(module_of(file))
        for there in {room_of(module) for module in imports_of(file) if module.startswith(f"{package}.")}:
            if there != here:
                arrows.setdefault((here, there), []).append(file)
    return arrows


def describe() -> str:
    """The floors of all packages as docs/architecture.md has them, the highest first."""
    return "\n".join(
        f"**{package}**\n\n```\n"
        + "\n".join(f"{height:2d}  {' · '.join(floors[height])}" for height in reversed(range(len(floors))))
        + "\n```\n"
        for package, floors in FLOORS.items()
    )


def page_with_floors() -> str:
    """docs/architecture.md with the floors of today."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{head}{BEGIN}\n\n{describe()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_floors(), encoding="utf-8")

"""The rules of the house that a reader relies on, read from the source of every module."""

import ast
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.architecture.floors import MAY_IMPORT, ROOT, files, imported_names, imports_of, module_of, tree_of

PURE = ("shared/*", "learner/detection/*", "learner/plan/*", "learner/types.py", "learner/packing/packer.py",
        "learner/stages.py", "learner/train.py", "compose/*")  # fmt: skip
ROOMS = {
    "vllm": ("rollout_server/engines/vllm/*",),
    "httpx": ("learner/servers/*", "compose/readiness.py"),
}
"""A heavy library and the only files that may import it."""


def roots_of(file: str) -> set[str]:
    return {name.partition(".")[0] for name in imported_names(file)}


def test_the_packages_are_all_there() -> None:
    assert {file.partition("/")[0] for file in files()} == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    house = set(MAY_IMPORT) | {"tests", "benchmarks"}
    for file in (file for file in files() if file.startswith(f"{package}/")):
        names = {name for name in imported_names(file) if name.partition(".")[0] in house}
        allowed = {name for name in names for may in MAY_IMPORT[package] if f"{name}.".startswith(f"{may}.")}
        assert names - allowed == set(), file


def test_pure_parts_know_no_model_library() -> None:
    wrong = [file for file in files() if any(fnmatch(file, pattern) for pattern in PURE)
             and roots_of(file) & {"torch", "transformers", "peft", "vllm"}]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("library", ROOMS)
def test_a_heavy_library_stays_in_its_room(library: str) -> None:
    users = [file for file in files() if library in roots_of(file)]
    assert [file for file in users if not any(fnmatch(file, room) for room in ROOMS[library])] == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph = {module_of(file): imports_of(file) for file in files()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("file", [file for file in files() if file.endswith("__init__.py")])
def test_an_init_file_holds_its_docstring_only(file: str) -> None:
    tree = tree_of(file)
    assert len(tree.body) == 1
    assert ast.get_docstring(tree)


LAST_CATCHES = {
    "shared/images.py",  # Pillow's readers raise whatever a broken file leads them to
    "rollout_server/batch_stream.py",  # one sample never ends a batch: of each, and of each engine's
    "rollout_server/engines/hf/engine.py",
    "rollout_server/engines/scripted.py",
    "rollout_server/engines/vllm/core.py",
}
"""Where whatever is raised becomes the answer of one sample, or one error of ours."""


def test_broad_excepts_stand_only_in_mains_and_where_one_item_must_not_end_all() -> None:
    wrong = [
        f"{file}:{node.lineno}"
        for file in files()
        if not file.endswith("__main__.py") and file not in LAST_CATCHES
        for node in ast.walk(tree_of(file))
        if _is_broad(node)
    ]
    assert wrong == []


def _is_broad(node: ast.AST) -> bool:
    broad = {"Exception", "BaseException"}
    if isinstance(node, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        return any(each is None or (isinstance(each, ast.Name) and each.id in broad) for each in caught)
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "suppress":
        return any(isinstance(each, ast.Name) and each.id in broad for each in node.args)
    return False


@pytest.mark.parametrize("file", files())
def test_every_module_says_what_it_is_and_stays_readable(file: str) -> None:
    assert ast.get_docstring(tree_of(file))
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= 400

"""No pickle on any border: safetensors and JSON only, so that nothing that is read can run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for package in ("shared", "rollout_server", "learner", "compose") for path in (ROOT / package).rglob("*.py")
)
PICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def unsafe(source: str) -> list[str]:
    """Every way in which a module could read or write a pickle, or YAML that makes objects."""
    return [said for node in ast.walk(ast.parse(source)) if (said := _unsafe_import(node) or _unsafe_call(node))]


def _unsafe_import(node: ast.AST) -> str:
    modules: list[str] = []
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [f"{node.module}.{alias.name}" for alias in node.names]
    return ", ".join(module for module in modules if PICKLERS & set(module.split(".")) or module == "torch.load")


def _unsafe_call(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    called, keywords = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
    if called == "torch.load":
        return "" if keywords.get("weights_only") == "True" else called
    pickles = (
        called in ("torch.save", "yaml.load", "yaml.unsafe_load") or keywords.get("allow_pickle", "False") != "False"
    )
    return called if pickles else ""


def test_nothing_is_pickled_or_unpickled() -> None:
    assert len(FILES) > 100
    found = {path.relative_to(ROOT).as_posix(): unsafe(path.read_text(encoding="utf-8")) for path in FILES}
    assert {file: said for file, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import torch, pickle as p",
        "def f():\n    from cloudpickle import dumps",
        "from joblib.externals import cloudpickle",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(state, path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
    ],
)
def test_the_ways_to_do_it_are_known(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "np.load(path)", "yaml.safe_load(text)", "load_file(path)"]
)
def test_safe_reading_is_left_alone(source: str) -> None:
    assert unsafe(source) == []

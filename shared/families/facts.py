"""What there is to know of a family of models before one is loaded. No torch, no transformers: names only.

To add a family: its facts in a file beside this one and a row in table.py, what trains it in `learner/families/` and
what decodes it in `rollout_server/engines/hf/families/`, each a file and a row. vLLM brings its own model.
"""

from dataclasses import dataclass
from typing import Literal

Part = Literal["llm", "vit", "aligner"]
"""What `freeze_*` and the learning rates of parts tell apart."""


@dataclass(frozen=True)
class FamilyFacts:
    """One family, such as `shared.families.qwen3_vl.QWEN3_VL`.

    Classes and functions of libraries are named as `package.module:name`, which `pkgutil.resolve_name` imports.
    """

    model_type: str
    """as config.json says it: qwen3_vl"""
    architecture: str
    """the name of its class, in transformers, in vLLM and in config.json"""
    transformers_module: str
    vllm_module: str
    """the modules of that class"""
    image_processor: str
    """the class that cuts images into patches, by Pillow and numpy alone"""
    image_resize: str
    """(height, width, multiple of, min_pixels, max_pixels) -> the (height, width) that it resizes to"""
    image_placeholder: str
    """the token that stands in a chat for an image"""
    placeholders: tuple[str, ...]
    """that one and those of other media, which no answer may hold"""
    special_texts: tuple[str, ...]
    """the special tokens that its tokenizers have from the start, which no desc may hold"""
    vit: tuple[str, ...]
    """the modules that are the vision tower, by the last part of their names"""
    aligner: tuple[str, ...]
    """the modules that lead from the tower into the language model; they may lie inside the tower"""
    fused: tuple[tuple[str, ...], ...]
    """sibling modules that vLLM keeps as one matrix, which can only be replaced whole"""

    @property
    def transformers_class(self) -> str:
        return f"{self.transformers_module}:{self.architecture}"

    @property
    def vllm_class(self) -> str:
        return f"{self.vllm_module}:{self.architecture}"

    def part_of(self, name: str) -> Part:
        """The part of the model that a parameter or module belongs to; embeddings and head count as llm."""
        modules = set(name.split("."))
        if modules & set(self.aligner):
            return "aligner"
        return "vit" if modules & set(self.vit) else "llm"

"""Optional packages: whether they are installed here, and which extra of ours brings them."""

from importlib.util import find_spec

EXTRAS = {"pyarrow": "parquet", "tensorboard": "tracking", "vllm": "vllm", "wandb": "tracking"}
"""The extra of each optional module."""


def is_installed(module: str) -> bool:
    """Whether `module` can be imported; it is not."""
    return find_spec(module) is not None


def cure_for(module: str) -> str:
    """How to get a module that is missing."""
    return f"pip install 'boxloop[{EXTRAS[module]}]'"

"""A checkpoint as a plain Hugging Face model: `python -m learner.checkpoints.export CHECKPOINT --out DIR`."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from shared.checkpoint_facts import ABOUT_THESE_WEIGHTS, base_model, holds_adapters
from shared.config.paths import user_path
from shared.console import settle_streams
from shared.errors import BoxloopError, ConfigError
from shared.run_folder import check_writable
from shared.whole_folder import whole_folder

if TYPE_CHECKING:
    from learner.model.family import VisionLanguageModel


def export(checkpoint: Path, out: Path, dtype: str | None = None) -> None:
    """Write `checkpoint` to `out`, whole or not at all: adapters merged, tokenizer and processors beside the weights.

    `dtype` is torch's name of a type; None = that of the model that training began with. Raises DataError when
    `checkpoint` is none of ours or is broken, and ConfigError when `out` is taken.
    """
    check_writable(out, "--out")
    # Here, so that `--help` and a wrong path do not wait for torch.
    import torch

    from learner.checkpoints.checkpoint import copy_companions, read_state
    from learner.families.load import load_model
    from learner.model.adapter_files import tuner_of

    state = read_state(checkpoint)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out} exists and is not empty; name a new folder")
    if holds_adapters(checkpoint):
        base, tuner = base_model(str(checkpoint)), tuner_of(checkpoint)
        loaded = load_model(base, dtype="float32", device="cpu", tuner=tuner, adapters=checkpoint)
    else:
        loaded = load_model(str(checkpoint), dtype="float32", device="cpu")
    _fold_adapters(loaded.model)
    loaded.model.to(getattr(torch, dtype or state.base_dtype))
    with whole_folder(out) as folder:
        loaded.model.save_pretrained(folder)
        copy_companions(loaded.folder, folder)
        for file in (checkpoint / name for name in ABOUT_THESE_WEIGHTS):
            if file.exists():  # the weights are the same
                shutil.copyfile(file, folder / file.name)


def _fold_adapters(model: "VisionLanguageModel") -> None:
    """Make adapted layers plain ones again, with the merged weights; nothing trains this model any more."""
    from learner.model.adapters import adapted_layers
    from learner.weight_sync.snapshot import merged_weight

    for name, layer in adapted_layers(model).items():
        layer.base_layer.weight.data = merged_weight(layer)
        model.set_submodule(name, layer.base_layer)


def main(arguments: Sequence[str]) -> int:
    """Export and return the exit code."""
    parser = argparse.ArgumentParser(prog="boxloop export", description="Write a plain Hugging Face checkpoint.")
    parser.add_argument("checkpoint", type=user_path, help="a run's checkpoint-N folder")
    parser.add_argument("--out", type=user_path, required=True, help="folder to write; must not exist or be empty")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of the weights; else the base checkpoint's"
    )
    settle_streams()
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        export(options.checkpoint, options.out, options.dtype)
    except BoxloopError as error:
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return error.exit_code
    console.print(f"{options.out}: written", markup=False)
    return 0


if __name__ == "__main__":
    from shared.companions import tolerate_cuda_builds

    tolerate_cuda_builds()  # before anything imports transformers
    sys.exit(main(sys.argv[1:]))

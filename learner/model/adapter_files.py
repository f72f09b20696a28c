"""Adapters on disk, in PEFT's own format: `adapter_config.json` beside `adapter_model.safetensors`."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.model.adapters import ADAPTER, Adapters, peft_config
from learner.model.family import VisionLanguageModel
from shared.config.training import TunerSection
from shared.errors import ConfigError, DataError

TENSORS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What stands before every name in the file: PEFT saves its wrapper's view of the model."""

COMPARED = ("lora_rank", "lora_alpha", "use_dora")
"""What has to be the same for saved adapters to mean the same again."""


def save_adapters(model: VisionLanguageModel, adapters: Adapters, base: str, folder: Path) -> None:
    """Write all that is trained, for `PeftModel.from_pretrained` on the checkpoint `base`."""
    config = peft_config(adapters)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    config.base_model_name_or_path = base
    config.modules_to_save = list(adapters.whole) or None
    config.ensure_weight_tying = head.weight is embeddings.weight and embeddings.weight.requires_grad
    config.inference_mode = True
    config.save_pretrained(folder)
    tensors = {name: parameter.detach().cpu().clone() for name, parameter in _trained(model).items()}
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})


def load_adapters(model: VisionLanguageModel, adapters: Adapters, folder: Path) -> None:
    """Fill a model's adapters and modules to save from a folder.

    Raises ConfigError when the folder's adapters are others than the model's, and DataError when it has no weights.
    """
    _check_same(adapters.tuner, tuner_of(folder), folder)
    try:
        tensors = load_file(folder / TENSORS_FILE)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: {TENSORS_FILE} cannot be read ({error}); use another checkpoint") from error
    trained = _trained(model)
    unequal = sorted(trained.keys() ^ tensors.keys())
    if unequal:
        raise ConfigError(
            f"tuner.target_modules: {folder} was trained on other modules; {len(unequal)} weights are in one of both "
            f"only, such as {unequal[0].removeprefix(PREFIX)}; set the tuner keys as they were"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])


def tuner_of(folder: Path) -> TunerSection:
    """The tuner section that makes the adapters of a folder that `save_adapters` wrote."""
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(folder))
    return TunerSection(
        train_type="lora",
        use_dora=config.use_dora,
        lora_rank=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=tuple(sorted(config.target_modules)),
        modules_to_save=tuple(config.modules_to_save or ()),
    )


def _check_same(ours: TunerSection, theirs: TunerSection, folder: Path) -> None:
    for key in COMPARED:
        if getattr(ours, key) != getattr(theirs, key):
            raise ConfigError(
                f"tuner.{key}: {getattr(ours, key)}, but the adapters in {folder} have {getattr(theirs, key)}; "
                "set it as it was, or start anew from another model.model"
            )


def _trained(model: VisionLanguageModel) -> dict[str, Tensor]:
    """What a LoRA run trains, under the names in the file; trained embeddings stand there as the tied head too."""
    named = model.named_parameters(remove_duplicate=False)
    return {_saved_name(name): each for name, each in named if each.requires_grad}


def _saved_name(name: str) -> str:
    """PEFT leaves out the adapter's name, and calls magnitudes by their module."""
    plain = name.replace(f".{ADAPTER}.", ".")
    return PREFIX + (plain.removesuffix(".weight") if ".lora_magnitude_vector." in plain else plain)

"""Adapters on disk, in PEFT's own format: `adapter_config.json` beside `adapter_model.safetensors`."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.model.adapters import ADAPTER, Adapters, peft_config
from learner.model.family import VisionLanguageModel
from learner.model.trained_rows import ROWS, layers_with_rows
from shared.config.training import TunerSection
from shared.errors import ConfigError, DataError

TENSORS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What stands before every name in the file: PEFT saves its wrapper's view of the model."""

PEFT_ROWS = ".token_adapter.trainable_tokens_delta"
"""What PEFT calls rows that are trained alone; they are the rows, and no difference from any."""

COMPARED = ("lora_rank", "lora_alpha", "use_dora", "coordinate_rows")
"""What has to be the same for saved adapters to mean the same again."""


def save_adapters(model: VisionLanguageModel, adapters: Adapters, base: str, folder: Path) -> None:
    """Write all that is trained, for `PeftModel.from_pretrained` on the checkpoint `base`."""
    config = peft_config(adapters)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    config.base_model_name_or_path = base
    config.modules_to_save = list(adapters.whole) or None
    config.trainable_token_indices = _row_ids(model) or None
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
    _check_rows(model, folder)
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
        coordinate_rows=bool(config.trainable_token_indices),
    )


def _check_same(ours: TunerSection, theirs: TunerSection, folder: Path) -> None:
    for key in COMPARED:
        if getattr(ours, key) != getattr(theirs, key):
            raise ConfigError(
                f"tuner.{key}: {getattr(ours, key)}, but the adapters in {folder} have {getattr(theirs, key)}; "
                "set it as it was, or start anew from another model.model"
            )


def _row_ids(model: VisionLanguageModel) -> dict[str, list[int]]:
    """Rows that are trained alone, by the last part of their layer's name. PEFT ties those of a tied head itself."""
    own = {name.removesuffix(ROWS) for name, _ in model.named_parameters() if name.endswith(ROWS)}
    layers = layers_with_rows(model).items()
    return {name.rpartition(".")[2]: layer.row_ids.tolist() for name, layer in layers if name in own}


def _check_rows(model: VisionLanguageModel, folder: Path) -> None:
    from peft import LoraConfig

    ours, theirs = _row_ids(model), LoraConfig.from_pretrained(str(folder)).trainable_token_indices
    if ours != (theirs or {}):
        raise ConfigError(
            f"tuner.coordinate_rows: the adapters in {folder} train the rows of other tokens than this model's "
            "coordinate tokens; start from the model that they were trained on"
        )


def _trained(model: VisionLanguageModel) -> dict[str, Tensor]:
    """What a LoRA run trains, under the names in the file.

    Embeddings that are trained whole stand there as the tied head too; rows that are trained alone stand there once.
    """
    once = dict(model.named_parameters())
    named = model.named_parameters(remove_duplicate=False)
    return {
        _saved_name(name): each
        for name, each in named
        if each.requires_grad and (name in once or not name.endswith(ROWS))
    }


def _saved_name(name: str) -> str:
    """PEFT leaves out the adapter's name, and calls magnitudes by their module."""
    if name.endswith(ROWS):
        return PREFIX + name.removesuffix(ROWS) + PEFT_ROWS
    plain = name.replace(f".{ADAPTER}.", ".")
    return PREFIX + (plain.removesuffix(".weight") if ".lora_magnitude_vector." in plain else plain)

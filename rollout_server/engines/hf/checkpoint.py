"""The transformers checkpoint behind the `hf` engine: load it, name its tensors, replace them."""

from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rollout_server.engines.base import ModelTensors
from rollout_server.engines.hf.families.family import DecodedFamily
from rollout_server.engines.hf.families.table import FAMILIES
from rollout_server.settings import ServerSettings
from shared.errors import ConfigError, WeightSyncFailed
from shared.families.table import facts_of


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model of some family with its image processor and tokenizer."""

    family: DecodedFamily
    model: Any
    image_processor: Any
    tokenizer: Any

    def text_of(self, token_id: int) -> str:
        """The text of one token, special ones included."""
        text: str = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return text


def load_checkpoint(settings: ServerSettings) -> Checkpoint:
    """Load what `settings.model` names, ready to decode.

    `dtype` auto is float32 on a CPU, where it decodes faster, and the checkpoint's own on a GPU. Raises ConfigError
    for a directory without a model and for a model of no known family.
    """
    # Imported here so that the server answers its probes while these seconds pass.
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "float32" if settings.dtype == "auto" and device == "cpu" else settings.dtype
    pixels = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    given = {name: value for name, value in pixels.items() if value is not None}
    try:
        facts = facts_of(AutoConfig.from_pretrained(settings.model).model_type, settings.model)
        model = resolve_name(facts.transformers_class).from_pretrained(
            settings.model,
            dtype=dtype,
            attn_implementation="sdpa" if settings.attn_impl == "auto" else settings.attn_impl,
        )
        return Checkpoint(
            family=FAMILIES[facts.model_type],
            model=model.to(device).eval(),
            image_processor=resolve_name(facts.image_processor).from_pretrained(settings.model, **given),
            tokenizer=AutoTokenizer.from_pretrained(settings.model),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: shapes that do not fit
        raise ConfigError(f"model.model {settings.model} cannot be loaded: {error}") from error


def tensors_of(model: Any) -> ModelTensors:
    """Every tensor of the checkpoint under its name; those that share storage with an earlier one count as tied."""
    shapes: dict[str, tuple[int, ...]] = {}
    tied: dict[str, str] = {}
    first_names: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        source = first_names.setdefault(tensor.data_ptr(), name)
        if source == name:
            shapes[name] = tuple(tensor.shape)
        else:
            tied[name] = source
    return ModelTensors(shapes, tied)


@torch.no_grad()
def replace_weights(model: Any, file: Path) -> None:
    """Copy every tensor of the safetensors `file` into `model`, cast to the model's dtype.

    Raises WeightSyncFailed; the model may then hold a mixture of old and new.
    """
    held = model.state_dict()
    tied = tensors_of(model).tied
    try:
        with safe_open(file, framework="pt") as sent:
            names = set(sent.keys())
            for name in sorted(names):
                tensor = sent.get_tensor(name)
                source = tied.get(name)
                if source is not None and source in names and not torch.equal(tensor, sent.get_tensor(source)):
                    raise WeightSyncFailed(f"{name} and {source} are tied in this model but differ in {file.name}")
                held[name].copy_(tensor)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise WeightSyncFailed(f"loading {file} failed: {error!r}") from error

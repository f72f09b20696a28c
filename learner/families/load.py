"""Loading a checkpoint for training: float32 masters of all that is trained, computed in the device's fast type."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from safetensors import SafetensorError

from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.table import FAMILIES
from learner.model.adapter_files import load_adapters
from learner.model.adapters import adapters_for, add_adapters, hold_base_in
from learner.model.attention import MATMUL_ATTENTION, VARLEN_ATTENTION
from learner.model.family import VisionLanguageModel
from learner.model.freeze import freeze
from learner.model.loaded import LoadedModel
from learner.model.trained_rows import refuse_whole, train_rows
from shared.checkpoint_facts import chat_template_of, checkpoint_folder
from shared.config.training import TunerSection
from shared.errors import ConfigError
from shared.families.table import facts_in

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EVERYTHING = TunerSection()
"""Train all weights."""


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    attn_impl: str = "auto",
    device: str | None = None,
    tuner: TunerSection = EVERYTHING,
    seed: int = 0,
    adapters: Path | None = None,
) -> LoadedModel:
    """Load a checkpoint folder or hub id and make it ready to be trained as `tuner` says.

    `dtype` is the compute type: float32, bfloat16, or auto = bfloat16 where the device multiplies it natively.
    `attn_impl` is transformers' name of an attention, or auto. Adapters begin with weights drawn from `seed`, or with
    those of the folder `adapters`. Raises ConfigError for a folder that cannot be loaded or holds a model of no known
    family, for modules named in `tuner` that it does not have, and for adapters that are others.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = checkpoint_folder(name)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    compute_dtype = compute_dtype_for(target, dtype)
    family = FAMILIES[facts_in(folder).model_type]
    try:
        model: VisionLanguageModel = resolve_name(family.facts.transformers_class).from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention_for(target, attn_impl, compute_dtype)
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: shapes that do not fit
        raise ConfigError(f"model.model: {name} cannot be loaded: {error}") from error
    family.use_fast_kernels(model)
    trained = None
    if tuner.train_type == "lora":
        trained = adapters_for(model, family.facts, tuner)
        add_adapters(model, trained, seed)
        if tuner.coordinate_rows:
            refuse_whole(model)
            train_rows(model, _coordinate_ids(name))
        hold_base_in(model, compute_dtype)
        if adapters is not None:
            load_adapters(model, trained, adapters)
    else:
        freeze(model, family.facts, tuner)
        if tuner.coordinate_rows:
            train_rows(model, _coordinate_ids(name))
    model.to(target).train()
    return LoadedModel(
        family=family,
        model=model,
        name=str(folder.resolve()) if Path(name).is_dir() else name,
        folder=folder,
        device=target,
        compute_dtype=compute_dtype,
        image_token_id=int(model.config.image_token_id),
        adapters=trained,
    )


def load_tokenizer(name: str) -> Any:
    """The checkpoint's tokenizer. AutoProcessor is avoided: it needs torchvision."""
    from transformers import AutoTokenizer

    folder = checkpoint_folder(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        tokenizer.chat_template = chat_template_of(folder)
    return tokenizer


def _coordinate_ids(name: str) -> tuple[int, ...]:
    return CoordinateVocabulary.from_tokenizer(load_tokenizer(name)).coordinate_ids


def compute_dtype_for(device: torch.device, dtype: str) -> torch.dtype:
    """The compute type that `model.dtype` means on `device`. Raises ConfigError for a name it cannot be."""
    if dtype == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"model.dtype: got {dtype!r}; use auto or one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def attention_for(device: torch.device, attn_impl: str, compute_dtype: torch.dtype) -> str:
    """The attention that `model.attn_impl` means on `device`: in a GPU's 16-bit types torch's own flash kernels.

    Raises ConfigError for kernels that do not run there or not in this type.
    """
    has_flash_kernels = device.type == "cuda" and compute_dtype != torch.float32
    if attn_impl == "auto":
        if device.type == "cpu":
            return MATMUL_ATTENTION
        return VARLEN_ATTENTION if has_flash_kernels and multiplies_bfloat16(device) else "sdpa"
    if (attn_impl == VARLEN_ATTENTION or "flash" in attn_impl) and not has_flash_kernels:
        type_name = str(compute_dtype).removeprefix("torch.")
        raise ConfigError(
            f"model.attn_impl: {attn_impl} runs in bfloat16 on a GPU, this is {type_name} on a {device.type}; use auto"
        )
    return attn_impl


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))

"""A Qwen3-VL of about a million parameters, made from nothing: `python -m learner.model.tiny --out DIR`.

It is a complete Hugging Face checkpoint and learns to detect shapes in minutes on a CPU.
"""

if __name__ == "__main__":
    from shared.companions import tolerate_cuda_builds

    tolerate_cuda_builds()  # before anything imports transformers

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from learner.detection.vocabulary import NUM_BINS, coordinate_text
from learner.model.coordinate_rows import coordinate_rows
from learner.model.tiny_tokenizer import Glue, tiny_tokenizer
from shared.config.paths import user_path

PATCH_SIZE = 16
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2


@dataclass(frozen=True)
class TinySizes:
    """Sizes that `build_tiny` takes as overrides."""

    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 4096
    vision_depth: int = 2
    vision_hidden_size: int = 64
    vision_intermediate_size: int = 128
    vision_num_heads: int = 2
    num_position_embeddings: int = 64


def build_tiny(directory: Path, *, seed: int = 0, tokenizer: Glue = "plain", **overrides: int) -> None:
    """Write a randomly initialised tiny Qwen3-VL with tokenizer and processors to `directory`.

    `overrides` are fields of TinySizes; an unknown one is a TypeError. The same arguments give the same bytes.
    """
    words = tiny_tokenizer(tokenizer)
    config = tiny_config(words, replace(TinySizes(), **overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        initialise(model, words)
    stops = [words.convert_tokens_to_ids("<|im_end|>"), words.pad_token_id]
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=words.pad_token_id, do_sample=False)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    words.save_pretrained(directory)
    _write_processors(directory)


def tiny_config(tokenizer: PreTrainedTokenizerFast, sizes: TinySizes) -> Qwen3VLConfig:
    """The model's configuration; every id of the tokenizer has a row and no row is without an id."""
    return Qwen3VLConfig(
        text_config=_text_config(len(tokenizer), sizes),
        vision_config={
            "depth": sizes.vision_depth,
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": sizes.vision_intermediate_size,
            "num_heads": sizes.vision_num_heads,
            "out_hidden_size": sizes.hidden_size,
            "num_position_embeddings": sizes.num_position_embeddings,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
    )


def _text_config(vocab_size: int, sizes: TinySizes) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_hidden_layers,
        "num_attention_heads": sizes.num_attention_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "head_dim": sizes.head_dim,
        "max_position_embeddings": sizes.max_position_embeddings,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": _mrope_section(sizes.head_dim),
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
    }


@torch.no_grad()
def initialise(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """Fan-in initialisation: every matrix is normal with variance 1 / inputs, biases are 0, norms stay 1.

    Rows of the coordinate tokens are sinusoids of the bin, so that neighbouring bins begin as neighbours.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=fan_in**-0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    embeddings = model.get_input_embeddings().weight  # type: ignore[operator]
    first = tokenizer.convert_tokens_to_ids(coordinate_text(0))
    embeddings[first : first + NUM_BINS] = coordinate_rows(embeddings.shape[1])


def _mrope_section(head_dim: int) -> list[int]:
    """How many of the rotary frequencies turn with time, height and width."""
    pairs = head_dim // 2
    return [pairs - 2 * (pairs * 5 // 16), pairs * 5 // 16, pairs * 5 // 16]


def _write_processors(directory: Path) -> None:
    """Processor files with Qwen3-VL's patches and normalisation, and pixel bounds that fit small images."""
    patches = {
        "patch_size": PATCH_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    side = PATCH_SIZE * MERGE_SIZE
    image_size = {"size": {"shortest_edge": side**2, "longest_edge": (16 * side) ** 2}}
    video_size = {"size": {"shortest_edge": 4 * side**2, "longest_edge": 4 * (16 * side) ** 2}}
    files = {
        "preprocessor_config.json": {**patches, **image_size, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {**patches, **video_size, "video_processor_type": "Qwen3VLVideoProcessor"},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m learner.model.tiny", description="Write a tiny Qwen3-VL.")
    parser.add_argument("--out", type=user_path, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    parser.add_argument("--tokenizer", choices=("plain", "fused"), default="plain", help="how JSON glue is tokenised")
    arguments = parser.parse_args()
    disable_progress_bar()
    build_tiny(arguments.out, seed=arguments.seed, tokenizer=arguments.tokenizer)


if __name__ == "__main__":
    main()

"""A random Qwen3-VL of a given size, and a pack of made-up answers to train it on."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration

from learner.detection.record import GroundTruthObject
from learner.detection.targets import ground_truth_target
from learner.detection.vocabulary import CoordinateVocabulary
from learner.model.tiny import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE, TinySizes, initialise, tiny_config
from learner.model.tiny_tokenizer import tiny_tokenizer
from learner.packing.packer import Pack
from learner.types import EncodedImage, TrainingSample

SIZES = {
    "small": TinySizes(
        hidden_size=256,
        intermediate_size=768,
        num_attention_heads=8,
        num_key_value_heads=4,
        vision_hidden_size=128,
        vision_intermediate_size=256,
    ),
    "2b": TinySizes(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        vision_depth=24,
        vision_hidden_size=1024,
        vision_intermediate_size=4096,
        vision_num_heads=16,
        num_position_embeddings=2304,
    ),
}
ROW_TOKENS = 256
"""Tokens of a target, about a third of them its answer."""
NUM_OBJECTS = 6
GRID = (1, 16, 16)


def save_model(folder: Path, size: str, vocabulary_size: int) -> None:
    """Write a random checkpoint whose vocabulary goes on behind the tokenizer's last id."""
    words = tiny_tokenizer("plain")
    config = tiny_config(words, SIZES[size])
    config.text_config.vocab_size = vocabulary_size
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    initialise(model, words)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def made_up_pack(num_tokens: int) -> Pack[TrainingSample]:
    """A pack of `num_tokens` in whole targets of ROW_TOKENS; words before the image fill them up."""
    words = tiny_tokenizer("plain")
    vocabulary = CoordinateVocabulary.from_tokenizer(words)
    samples = tuple(_sample(seed, words, vocabulary) for seed in range(num_tokens // ROW_TOKENS))
    return Pack(samples, ROW_TOKENS * len(samples), num_tokens)


def _sample(seed: int, words: Any, vocabulary: CoordinateVocabulary) -> TrainingSample:
    random = np.random.default_rng(seed)
    corners, sides = random.integers(0, 500, (NUM_OBJECTS, 2)), random.integers(50, 450, (NUM_OBJECTS, 2))
    objects = [
        GroundTruthObject("red circle", "bbox_2d", (*map(int, corner), *map(int, corner + side)))
        for corner, side in zip(corners, sides, strict=True)
    ]
    ask = words.encode("<|vision_end|>Detect.<|im_end|>\n<|im_start|>assistant\n")
    image = [words.convert_tokens_to_ids("<|image_pad|>")] * (GRID[1] * GRID[2] // MERGE_SIZE**2)
    bare = ground_truth_target(f"made:{seed}", [*image, *ask], objects, vocabulary)
    filler = words.encode(" look")[:1] * (ROW_TOKENS - bare.num_tokens)
    target = ground_truth_target(f"made:{seed}", [*filler, *image, *ask], objects, vocabulary)
    patch_dim = 3 * TEMPORAL_PATCH_SIZE * PATCH_SIZE**2
    pixels = random.standard_normal((GRID[1] * GRID[2], patch_dim), dtype=np.float32)
    return TrainingSample(target, EncodedImage(pixels, GRID, b""))

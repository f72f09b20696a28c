"""Ground truth and answers to measure with: real COCO or LVIS annotations, or made-up ones like them."""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from learner.data.annotations import Conversion
from learner.data.coco import annotated_images
from learner.data.conversion import records_of
from learner.detection.geometry import bins_of_px, widened
from learner.detection.record import GroundTruthObject, ordered

Kind = Literal["bbox_2d", "poly"]
WORDS = (
    "baby",
    "bottle",
    "cat",
    "chair",
    "dog",
    "glass",
    "kite",
    "lamp",
    "man",
    "plate",
    "shoe",
    "sign",
    "street",
    "wheel",
)


@dataclass(frozen=True)
class Answered:
    """A ground truth with an answer that misses some of it, misplaces the rest a little and adds to it."""

    truth: tuple[GroundTruthObject, ...]
    answer: tuple[GroundTruthObject, ...]


def answered(annotations: Path | None, kind: Kind, num_images: int = 50, seed: int = 0) -> list[Answered]:
    """Answers for a file's images, or for made-up ones."""
    rng = random.Random(seed)
    truths = truths_of(annotations, kind) if annotations else [made_up(kind, rng) for _ in range(num_images)]
    return [Answered(truth, _answer(truth, rng)) for truth in truths]


def truths_of(annotations: Path, kind: Kind) -> list[tuple[GroundTruthObject, ...]]:
    """The ground truth of each image of an annotation file, in bins, in writing order."""
    conversion = Conversion()
    images = annotated_images(orjson.loads(annotations.read_bytes()), Path(), conversion)
    records = records_of(images, Path(), kind, conversion)
    return [
        ordered(
            [
                _quantised(item["desc"], shape, item[shape], record["width"], record["height"])
                for item in record["objects"]
                for shape in ("bbox_2d", "poly")
                if shape in item
            ]
        )
        for record in records
    ]


def made_up(kind: Kind, rng: random.Random) -> tuple[GroundTruthObject, ...]:
    """An image like LVIS's: about ten objects, most of them small, polygons of about forty vertices."""
    objects = []
    for _ in range(min(60, 1 + int(rng.lognormvariate(1.9, 0.9)))):
        size = min(0.9, rng.lognormvariate(-2.3, 0.9))
        x, y = rng.uniform(0, 1 - size), rng.uniform(0, 1 - size)
        shape = [x, y, x + size, y + size]
        if kind == "poly":
            num_vertices = max(3, min(200, int(rng.lognormvariate(3.4, 0.7))))
            angles = [2 * math.pi * place / num_vertices for place in range(num_vertices)]
            radii = [size / 2 * rng.uniform(0.7, 1.0) for _ in angles]
            shape = [
                value
                for angle, radius in zip(angles, radii, strict=True)
                for value in (x + size / 2 + radius * math.cos(angle), y + size / 2 + radius * math.sin(angle))
            ]
        objects.append(_quantised(" ".join(rng.sample(WORDS, rng.choice((1, 1, 2)))), kind, shape, 1.0, 1.0))
    return ordered(objects)


def build_tokenizer(descs: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that writes common words and the answer format as Qwen's does, and is as large.

    Digits stand alone, text is normalised, and added tokens follow an ordinary vocabulary of 150,000 entries.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    glue = '{"object_1": {"desc": "", "bbox_2d": ["", "", "", ""]}, "object_2": {"desc": "", "poly": ["", ""]}}'
    tokenizer.train_from_iterator([glue, *descs] * 20, trainer)
    tokenizer = _enlarged(tokenizer, alphabet, 150_000)
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", *(f"<|coord_{bin}|>" for bin in range(1000))]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def _enlarged(tokenizer: Tokenizer, alphabet: list[str], size: int) -> Tokenizer:
    """The same words and merges, with ids spread over a vocabulary of `size` words; no merge leads to the others."""
    rng = random.Random(0)
    state = orjson.loads(tokenizer.to_str())
    words = dict.fromkeys(state["model"]["vocab"])
    while len(words) < size:
        words["".join(rng.choices(alphabet, k=rng.randint(3, 9)))] = None
    ids = rng.sample(range(size), size)
    state["model"]["vocab"] = dict(zip(words, ids, strict=True))
    return Tokenizer.from_str(orjson.dumps(state).decode())


def _quantised(desc: str, kind: Kind, values: list[float], width: float, height: float) -> GroundTruthObject:
    bins = bins_of_px(values, width, height)
    return GroundTruthObject(desc, kind, widened(bins) if kind == "bbox_2d" else bins)


def _answer(truth: tuple[GroundTruthObject, ...], rng: random.Random) -> tuple[GroundTruthObject, ...]:
    """Four in five objects, each moved by up to 1 %, and one extra for ten."""
    kept = [_moved(item, rng, 10) for item in truth if rng.random() < 0.8]
    extra = [_moved(item, rng, 300) for item in truth if rng.random() < 0.1]
    return ordered(kept + extra)


def _moved(item: GroundTruthObject, rng: random.Random, by: int) -> GroundTruthObject:
    shift = (rng.randint(-by, by), rng.randint(-by, by))
    bins = tuple(min(max(value + shift[place % 2], 0), 999) for place, value in enumerate(item.bins))
    return GroundTruthObject(item.desc, item.kind, widened(bins) if item.kind == "bbox_2d" else bins)

"""Tokenizers to parse and encode with: small byte-level BPE, trained here, in three variants."""

import json
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from learner.detection.targets import Target
from learner.detection.vocabulary import CoordinateVocabulary

GLUE = '{"object_1": {"desc": "black cat", "bbox_2d": ["", "", "", ""]}, "object_2": {"desc": "dog", "poly": ["", ""]}}'
FUSED = ('"]}, "', '"]}}', '"}', "}}", '", "', '": {"desc": "', '", "bbox_2d": ["', "}<|im_end|>", '{"object_')
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|image_pad|>")


class Backed(NamedTuple):
    """What a vocabulary reads of transformers' tokenizers, whose import takes seconds; test_vocabulary.py has those."""

    backend_tokenizer: Tokenizer
    eos_token_id: int


def build_tokenizer(fused: tuple[str, ...] = (), num_synthetic: int = 0) -> Backed:
    """A byte-level BPE with Qwen's special tokens and the 1000 coordinate tokens.

    `fused` are added tokens that glue the answer format's punctuation together; `num_synthetic` fills the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([GLUE] * 20, trainer)
    if num_synthetic:
        tokenizer.model = _enlarged(tokenizer, alphabet, num_synthetic)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in fused])
    coordinates = [f"<|coord_{bin}|>" for bin in range(1000)]
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (*SPECIAL, *coordinates)]
    )
    return Backed(tokenizer, tokenizer.token_to_id("<|im_end|>"))


def _enlarged(tokenizer: Tokenizer, alphabet: list[str], size: int) -> models.BPE:
    """The same merges, and words of four bytes that no merge leads to."""
    words = (
        alphabet[n % 7] + alphabet[n // 7 % 256] + alphabet[n // 1792 % 256] + alphabet[255 - n % 11] for n in count()
    )
    vocab = dict(tokenizer.get_vocab(with_added_tokens=False))
    while len(vocab) < size:
        vocab.setdefault(next(words), len(vocab))
    return models.BPE(vocab=vocab, merges=[])


@pytest.fixture(scope="session")
def plain_vocabulary() -> CoordinateVocabulary:
    return CoordinateVocabulary.from_tokenizer(build_tokenizer())


@pytest.fixture(scope="session")
def fused_vocabulary() -> CoordinateVocabulary:
    return CoordinateVocabulary.from_tokenizer(build_tokenizer(FUSED))


@pytest.fixture(scope="session", params=["plain", "fused"])
def vocabulary(
    request: pytest.FixtureRequest, plain_vocabulary: CoordinateVocabulary, fused_vocabulary: CoordinateVocabulary
) -> CoordinateVocabulary:
    """Both ways to tokenize the answer format."""
    return plain_vocabulary if request.param == "plain" else fused_vocabulary


@pytest.fixture(scope="session")
def answer_of(vocabulary: CoordinateVocabulary) -> Callable[[Target], list[tuple[str, dict[str, Any]]]]:
    """Read the answer of a target, which must end with the stop token, as key/value pairs, duplicates kept."""

    def read(target: Target) -> list[tuple[str, dict[str, Any]]]:
        text = vocabulary.decode_pieces(target.token_ids[target.num_prompt_tokens :]).decode()
        assert text.endswith("}<|im_end|>")
        entries = json.loads(
            text.removesuffix("<|im_end|>"),
            object_pairs_hook=lambda pairs: pairs if pairs and pairs[0][0] != "desc" else dict(pairs),
        )
        return list(entries)

    return read


@pytest.fixture(scope="session")
def large_tokenizer() -> Backed:
    return build_tokenizer(num_synthetic=150_000)

"""What the pure floor learns from a tokenizer, and which tokenizers it refuses."""

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from learner.detection.serialize import answer_text
from learner.detection.vocabulary import CoordinateVocabulary
from shared.errors import DataError


def of_transformers(tokenizer: Tokenizer, eos: str = "<|im_end|>") -> Any:
    """The tokenizer as transformers hands it out."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)


def wrapped(tokens: list[str], eos: str = "<|im_end|>") -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(character) for character in pre_tokenizers.ByteLevel.alphabet()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return of_transformers(tokenizer, eos)


COORDINATES = [f"<|coord_{bin}|>" for bin in range(1000)]


def test_bins_and_ids_are_inverse(vocabulary: CoordinateVocabulary) -> None:
    assert [vocabulary.bin_of(vocabulary.id_of(bin)) for bin in range(1000)] == list(range(1000))
    assert vocabulary.coordinate_ids[7] == vocabulary.id_of(7) == vocabulary.encode("<|coord_7|>")[0]
    assert vocabulary.is_coordinate(vocabulary.id_of(999))
    assert vocabulary.bin_of(vocabulary.im_end_id) is None
    assert not vocabulary.is_coordinate(vocabulary.im_end_id)
    for bin in (-1, 1000):
        with pytest.raises(IndexError, match=r"0\.\.999"):
            vocabulary.id_of(bin)


def test_stops_and_special_texts(vocabulary: CoordinateVocabulary) -> None:
    assert vocabulary.encode("<|im_end|>") == [vocabulary.im_end_id]
    assert vocabulary.stop_ids == {vocabulary.im_end_id, *vocabulary.encode("<|endoftext|>")}
    assert {"<|im_end|>", "<|image_pad|>", "<|coord_0|>"} <= vocabulary.special_texts
    assert '"]}}' not in vocabulary.special_texts


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_pieces_are_the_bytes_of_what_was_encoded(vocabulary: CoordinateVocabulary, text: str) -> None:
    whole = f"{text}<|coord_3|>{text}<|im_end|>"
    assert vocabulary.decode_pieces(vocabulary.encode(whole)) == whole.encode()


def test_ids_without_a_token_have_no_bytes(vocabulary: CoordinateVocabulary) -> None:
    assert vocabulary.decode_pieces([-1, 10**7, vocabulary.im_end_id]) == b"<|im_end|>"


def test_escaped_special_text_keeps_its_value_and_encodes_as_text(vocabulary: CoordinateVocabulary) -> None:
    escaped = vocabulary.escape_special("a <|im_end|> b <c> <|coord_5|>")
    assert escaped == "a \\u003c|im_end|> b <c> \\u003c|coord_5|>"
    assert vocabulary.im_end_id not in vocabulary.encode(escaped)


def test_missing_tokens_are_named() -> None:
    with pytest.raises(DataError, match=r"lacks <\|coord_5\|>; `boxloop init MODEL --out DIR`"):
        CoordinateVocabulary.from_tokenizer(wrapped(["<|im_end|>", *COORDINATES[:5], *COORDINATES[6:]]))
    with pytest.raises(DataError, match=r"lacks <\|coord_10\|>.* and 985 more"):
        CoordinateVocabulary.from_tokenizer(wrapped(["<|im_end|>", *COORDINATES[:10]]))
    with pytest.raises(DataError, match=r"lacks <\|im_end\|>"):
        CoordinateVocabulary.from_tokenizer(wrapped(["</s>", *COORDINATES], eos="</s>"))


def test_a_tokenizer_that_loses_characters_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_end|>", *COORDINATES)])
    with pytest.raises(DataError, match="byte-level"):
        CoordinateVocabulary.from_tokenizer(of_transformers(tokenizer))


def test_a_tokenizer_without_the_tokenizers_library_is_refused() -> None:
    with pytest.raises(DataError, match="str has no backend_tokenizer"):
        CoordinateVocabulary.from_tokenizer("tokenizer")


def test_sentencepiece_tokens_with_byte_fallback_are_read() -> None:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *'{}[]":, "object_123desc,bbx', "é"]
    vocab = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<|im_end|>", *COORDINATES)]
    )
    vocabulary = CoordinateVocabulary.from_tokenizer(of_transformers(tokenizer))
    text = '{"object_1": {"desc": "é 猫 ", "bbox_2d": []}}'
    assert vocabulary.decode_pieces(vocabulary.encode(text)) == text.encode()


@pytest.mark.slow
def test_a_large_vocabulary_is_read_once_when_first_needed(large_tokenizer: Any) -> None:
    totals = []
    text = answer_text([]) + "<|im_end|>"
    backend = large_tokenizer.backend_tokenizer
    ids = backend.encode(text, add_special_tokens=False).ids
    for _ in range(2):
        times = [time.process_time()]
        vocabulary = CoordinateVocabulary.from_tokenizer(large_tokenizer)
        times.append(time.process_time())
        for _ in range(2):
            assert vocabulary.decode_pieces(ids) == text.encode()
            times.append(time.process_time())
        to_make, first, second = (end - start for start, end in pairwise(times))
        assert to_make < first / 4
        assert second < first / 10
        totals.append(to_make + first)
    assert min(totals) < 1.0
    assert backend.get_vocab_size(with_added_tokens=False) > 150_000 - 2000

"""Openings put together from parts are the tokenizer's own ids of their whole text."""

import unicodedata
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from learner.detection.openings import head_of, opening_of, rest_of
from learner.detection.serialize import closing_with_desc, open_object
from learner.detection.vocabulary import CoordinateVocabulary

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
letters = st.one_of(st.sampled_from("<|>{}[]\"\\/:, _19dn's"), st.characters(codec="utf-8"))
descs = st.text(letters, min_size=1, max_size=8).filter(str.strip)
leads = st.one_of(st.sampled_from(["{", '"]}, ']), descs.map(lambda desc: closing_with_desc(desc) + ", "))


def rebuilt(vocabulary: CoordinateVocabulary, normalizer: object, splitter: object) -> CoordinateVocabulary:
    """The same tokens behind another way to prepare text."""
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.pre_tokenizer = splitter
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    ends = tokenizer.token_to_id("<|im_end|>")
    return CoordinateVocabulary.from_tokenizer(SimpleNamespace(backend_tokenizer=tokenizer, eos_token_id=ends))


@pytest.fixture(scope="session")
def qwen_like(plain_vocabulary: CoordinateVocabulary) -> CoordinateVocabulary:
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated")
    unsplit = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return rebuilt(plain_vocabulary, normalizers.NFC(), pre_tokenizers.Sequence([words, unsplit]))


@pytest.fixture(scope="session")
def wordless(plain_vocabulary: CoordinateVocabulary) -> CoordinateVocabulary:
    return rebuilt(plain_vocabulary, None, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))


@pytest.fixture(scope="session")
def rewriting(plain_vocabulary: CoordinateVocabulary) -> CoordinateVocabulary:
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return rebuilt(plain_vocabulary, normalizers.Replace("2dn", "3d"), splitter)


@pytest.mark.parametrize("name", ["plain_vocabulary", "fused_vocabulary", "qwen_like", "wordless", "rewriting"])
@settings(max_examples=60, deadline=None)
@given(leads, st.integers(1, 12_000), descs, st.sampled_from(["bbox_2d", "poly"]))
def test_an_opening_is_the_tokenizer_s_own(
    name: str, request: pytest.FixtureRequest, lead: str, index: int, desc: str, kind: str
) -> None:
    vocabulary: CoordinateVocabulary = request.getfixturevalue(name)
    lead, desc = (unicodedata.normalize("NFC", text) for text in (vocabulary.escape_special(lead), desc))
    before, value, after = open_object(index, desc, kind)
    value = vocabulary.escape_special(value)
    ids, desc_start, desc_end = opening_of(vocabulary, lead, index, desc, kind)
    assert ids == tuple(vocabulary.encode(lead + before + value + after))
    ends = [len(vocabulary.decode_pieces(ids[:count])) for count in range(len(ids) + 1)]
    low, high = len((lead + before).encode()), ends[-1] - len(after.encode())
    inside = [place for place, (start, end) in enumerate(pairwise(ends)) if low <= start and end <= high]
    assert list(range(desc_start, desc_end)) == inside


def test_parts_are_shared_where_words_part_at_the_border_and_only_there(
    plain_vocabulary: CoordinateVocabulary,
    fused_vocabulary: CoordinateVocabulary,
    qwen_like: CoordinateVocabulary,
    wordless: CoordinateVocabulary,
    rewriting: CoordinateVocabulary,
) -> None:
    for vocabulary, is_shared in (
        (plain_vocabulary, True),
        (qwen_like, True),
        (fused_vocabulary, False),
        (wordless, False),
        (rewriting, False),
    ):
        assert (head_of(vocabulary, '"]}, ', 12) is not None) == is_shared
        assert not is_shared or rest_of(vocabulary, "black cat", "bbox_2d") is not None


def test_a_text_that_is_normalised_is_still_the_tokenizer_s_own(qwen_like: CoordinateVocabulary) -> None:
    decomposed = unicodedata.normalize("NFD", "éüéü")  # four bytes shorter when composed, as long as `desc`
    for lead, desc in (("{", decomposed), (closing_with_desc(decomposed) + ", ", "cat")):
        before, value, after = open_object(3, desc, "bbox_2d")
        expected = tuple(qwen_like.encode(lead + before + value + after))
        assert opening_of(qwen_like, lead, 3, desc, "bbox_2d").token_ids == expected

"""The text before an object's first coordinate, in the ids that the tokenizer gives it, put together from parts.

    "]}, "object_12": {" │ desc": "black cat", "bbox_2d": ["
    by lead and number   │ by desc and kind

A tokenizer cuts text into words and encodes each by itself. Where a word ends at the line above, both sides are encoded
once and serve all objects; where none does, or where it cannot be told, an opening is encoded as a whole.
"""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from learner.detection.serialize import CLOSE_OBJECT, SEPARATOR, Describable, open_object
from learner.detection.vocabulary import CoordinateVocabulary

OPEN_ANSWER = "{"
_BORDER = '"d'
"""The characters on both sides of the border. No opening differs within 5 characters before and 8 behind it, which is
more than a splitter of words looks at."""
_BEHIND_BORDER = 'desc": "'
_NORMALIZERS_THAT_LEAVE_IT = {"NFC", "NFD"}


class Stretch(NamedTuple):
    """Ids of an answer's text between two coordinates; those in [desc_start, desc_end) lie wholly in a desc value."""

    token_ids: tuple[int, ...]
    desc_start: int = 0
    desc_end: int = 0


def openings(
    vocabulary: CoordinateVocabulary, items: Iterable[Describable], start_index: int, lead: str
) -> Iterator[Stretch]:
    """The stretch before each item's first coordinate.

    `lead` is the text from the last coordinate (or the start) to the first item's separator.
    """
    lead = OPEN_ANSWER if lead == OPEN_ANSWER else vocabulary.escape_special(lead) + SEPARATOR
    for index, item in enumerate(items, start_index):
        yield opening_of(vocabulary, lead, index, item.desc, item.kind)
        lead = CLOSE_OBJECT + SEPARATOR


@lru_cache(maxsize=1 << 16)
def opening_of(vocabulary: CoordinateVocabulary, lead: str, index: int, desc: str, kind: str) -> Stretch:
    """The ids of the text before an object's first coordinate, as of one piece with what leads to it.

    A model's own desc may spell a special token with escapes; it stays text.
    """
    if (head := head_of(vocabulary, lead, index)) is None or (rest := rest_of(vocabulary, desc, kind)) is None:
        return _encoded(vocabulary, lead, index, desc, kind)[0]
    shift = len(head)
    desc_start, desc_end = (rest.desc_start + shift, rest.desc_end + shift) if rest.desc_end else (0, 0)
    return Stretch(head + rest.token_ids, desc_start, desc_end)


@lru_cache(maxsize=1 << 14)
def head_of(vocabulary: CoordinateVocabulary, lead: str, index: int) -> tuple[int, ...] | None:
    """The ids before the border, or None where there is none."""
    if not has_border(vocabulary):
        return None
    opening, border = _encoded(vocabulary, lead, index, "a", "bbox_2d")
    return opening.token_ids[:border] if border else None


@lru_cache(maxsize=1 << 16)
def rest_of(vocabulary: CoordinateVocabulary, desc: str, kind: str) -> Stretch | None:
    """The ids behind the border, or None where there is none."""
    (ids, desc_start, desc_end), border = _encoded(vocabulary, OPEN_ANSWER, 1, desc, kind)
    return Stretch(ids[border:], max(0, desc_start - border), max(0, desc_end - border)) if border else None


def _encoded(
    vocabulary: CoordinateVocabulary, lead: str, index: int, desc: str, kind: str
) -> tuple[Stretch, int | None]:
    """An opening encoded in one piece, and how many of its ids stand before the border, if there is one."""
    before, value, after = open_object(index, desc, kind)
    text = lead + before + vocabulary.escape_special(value) + after
    encoding = vocabulary.tokenizer.encode(text, add_special_tokens=False)
    ids = tuple(encoding.ids)
    lengths = list(vocabulary.num_characters(ids))
    ends = list(accumulate(lengths))
    low, high = len((lead + before).encode()), ends[-1] - len(after.encode())
    inside = [place for place, end in enumerate(ends) if low <= end - lengths[place] and end <= high]
    stretch = Stretch(ids, inside[0], inside[-1] + 1) if inside else Stretch(ids)
    at = low - len(_BEHIND_BORDER)
    if at not in ends or ends[-1] != len(text.encode()):  # a text that was rewritten has its border elsewhere
        return stretch, None
    border = ends.index(at) + 1
    words = encoding.word_ids
    return stretch, border if words[border - 1] != words[border] else None


@lru_cache
def has_border(vocabulary: CoordinateVocabulary) -> bool:
    """Whether words alone decide where the border is.

    They do unless text is rewritten before it is split, or an added token, which is cut out first, can lie across it.
    """
    backend = vocabulary.tokenizer
    normalizer = json.loads(backend.normalizer.__getstate__()) if backend.normalizer is not None else None
    is_left = normalizer is None or normalizer["type"] in _NORMALIZERS_THAT_LEAVE_IT
    return is_left and not any(_BORDER in token.content for token in backend.get_added_tokens_decoder().values())

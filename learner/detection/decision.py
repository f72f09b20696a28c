"""The token by which an answer decides between ending and going on.

After an object's last coordinate, and at the start, an ending and a next object may share their first ids; the decision
falls where they part. With the vocabulary of Qwen that is `}}` against `},` behind `"]`, and `{}` against `{"` at the
start; another tokenizer may have one token for all that closes an object and the answer.
"""

from functools import lru_cache
from typing import NamedTuple

from learner.detection.openings import Stretch, openings
from learner.detection.serialize import CLOSE_ANSWER
from learner.detection.vocabulary import CoordinateVocabulary


class Probe(NamedTuple):
    """An object that could come next."""

    desc: str = "a"
    kind: str = "bbox_2d"
    bins: tuple[int, ...] = ()


@lru_cache(maxsize=1 << 16)
def stretch_of(vocabulary: CoordinateVocabulary, text: str) -> Stretch:
    """Encode text without a desc in it, in one piece."""
    return Stretch(tuple(vocabulary.encode(text)))


def ending(vocabulary: CoordinateVocabulary, lead: str) -> Stretch:
    """The stretch that ends an answer. `lead` is the text from the last coordinate (or the start)."""
    # The stop token by its id: text could come out as an added token that ends in it, at which no server stops.
    closed = stretch_of(vocabulary, vocabulary.escape_special(lead) + CLOSE_ANSWER)
    return Stretch((*closed.token_ids, vocabulary.im_end_id))


@lru_cache(maxsize=1 << 12)
def decision_place(vocabulary: CoordinateVocabulary, lead: str) -> int:
    """Where in `ending` the first id stands by which it is no opening of a next object."""
    (going_on,) = openings(vocabulary, [Probe()], 1, lead)
    both = zip(ending(vocabulary, lead).token_ids, going_on.token_ids, strict=False)
    return next(place for place, (stop, go) in enumerate(both) if stop != go)

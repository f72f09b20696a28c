"""The 1000 coordinate tokens of a tokenizer, and the text of every other token.

A rollout is read as *marked text*: each byte of it is one character below U+0100 (so a character of desc that is split
over two tokens joins again), and each coordinate token is a single character above, which no byte can be mistaken for.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shared.errors import DataError

NUM_BINS = 1000
COORDINATE_MARK = 0x100
"""Bin k is the character `COORDINATE_MARK + k` of marked text."""
STOP = chr(COORDINATE_MARK + NUM_BINS)
UNKNOWN = chr(COORDINATE_MARK + NUM_BINS + 1)
"""An id outside the vocabulary; it makes whatever it stands in invalid."""
IM_END = "<|im_end|>"
ANY_COORDINATE = f"{chr(COORDINATE_MARK)}-{chr(COORDINATE_MARK + NUM_BINS - 1)}"
"""The range of coordinate marks, for use inside a character class."""

_PROBE_HEAD, _PROBE_BETWEEN, _PROBE_TAIL = '{"object_1": {"desc": "a", "bbox_2d": ["', '", "', '"]}}'


def coordinate_text(bin: int) -> str:
    """The coordinate token of a bin as text."""
    return f"<|coord_{bin}|>"


class _Pieces(dict[int, str]):
    """Marked text by token id. Ids that a padded embedding matrix has and the tokenizer lacks are `UNKNOWN`."""

    def __missing__(self, token_id: int) -> str:
        return UNKNOWN


@dataclass(frozen=True, eq=False)
class CoordinateVocabulary:
    """What the pure floor knows of a tokenizer. Build it once with `from_tokenizer` and share it.

    `coordinate_ids` are in bin order; `stop_ids` end an answer and hold `im_end_id`; `special_texts` may not stand in a
    desc, because they would be encoded as the tokens they name.
    """

    coordinate_ids: tuple[int, ...] = field(repr=False)
    im_end_id: int
    stop_ids: frozenset[int]
    special_texts: frozenset[str] = field(repr=False)
    tokenizer: Any = field(repr=False)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> "CoordinateVocabulary":
        """Read a transformers tokenizer that is backed by the tokenizers library.

        Raises DataError when coordinate tokens or `<|im_end|>` are missing, or when answers in the answer format would
        not survive the way into ids and back.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DataError(f"{type(tokenizer).__name__} has no backend_tokenizer; load it with AutoTokenizer")
        coordinate_ids = _ids_of(backend, [coordinate_text(bin) for bin in range(NUM_BINS)])
        (im_end_id,) = _ids_of(backend, [IM_END])
        ends = (tokenizer.eos_token_id, backend.token_to_id("<|endoftext|>"))
        added = backend.get_added_tokens_decoder().values()
        vocabulary = cls(
            coordinate_ids=coordinate_ids,
            im_end_id=im_end_id,
            stop_ids=frozenset({im_end_id, *(end for end in ends if end is not None)}),
            special_texts=frozenset(token.content for token in added if token.special)
            | {coordinate_text(bin) for bin in range(NUM_BINS)},
            tokenizer=backend,
        )
        vocabulary._check()
        return vocabulary

    def bin_of(self, token_id: int) -> int | None:
        """Bin 0..999 of a coordinate token, None for any other id."""
        return self._bins.get(token_id)

    def id_of(self, bin: int) -> int:
        """Token id of a bin. Raises IndexError outside 0..999."""
        if not 0 <= bin < NUM_BINS:
            raise IndexError(f"bin {bin} is not in 0..{NUM_BINS - 1}")
        return self.coordinate_ids[bin]

    def is_coordinate(self, token_id: int) -> bool:
        return token_id in self._bins

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as it stands: nothing is added, and special tokens in it are recognised as such."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def escape_special(self, json_text: str) -> str:
        """Text of JSON strings in which nothing is encoded as a special token any more, and every value is the same."""
        return self._special.sub(lambda found: f"\\u{ord(found.group()[0]):04x}{found.group()[1:]}", json_text)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.special_texts, key=len, reverse=True))))

    def marked_text(self, token_ids: Iterable[int]) -> str:
        """The text of token ids, one character a byte, with coordinate tokens and stop ids as marks."""
        return "".join(map(self._pieces.__getitem__, token_ids))

    def num_characters(self, token_ids: Iterable[int]) -> Iterable[int]:
        """Length of each token in marked text."""
        return map(len, map(self._pieces.__getitem__, token_ids))

    def decode_pieces(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of token ids, special tokens included; ids outside the vocabulary are left out."""
        return b"".join(map(self._bytes_of, token_ids))

    @cached_property
    def is_coordinate_id(self) -> Any:
        """`is_coordinate` as a C function, for `map`."""
        return self._bins.__contains__

    @cached_property
    def _bins(self) -> dict[int, int]:
        return {token_id: bin for bin, token_id in enumerate(self.coordinate_ids)}

    @cached_property
    def _pieces(self) -> _Pieces:
        pieces = _pieces_of(self.tokenizer, self.tokenizer.get_vocab(with_added_tokens=False).items())
        pieces.update((token_id, chr(COORDINATE_MARK + bin)) for token_id, bin in self._bins.items())
        pieces.update((token_id, STOP) for token_id in self.stop_ids)
        return pieces

    def _bytes_of(self, token_id: int) -> bytes:
        piece = self._pieces[token_id]
        if piece == UNKNOWN:
            return b""
        if len(piece) == 1 and ord(piece) >= COORDINATE_MARK:
            return str(self.tokenizer.id_to_token(token_id)).encode()
        return piece.encode("latin-1")

    def _check(self) -> None:
        """Encode a small answer and read it back."""
        first, last = coordinate_text(0), coordinate_text(NUM_BINS - 1)
        text = _PROBE_HEAD + first + _PROBE_BETWEEN + last + _PROBE_TAIL
        ids = self.encode(text)
        in_stretches = [
            *self.encode(_PROBE_HEAD),
            self.id_of(0),
            *self.encode(_PROBE_BETWEEN),
            self.id_of(NUM_BINS - 1),
            *self.encode(_PROBE_TAIL),
        ]
        # Only these ids' pieces: the table of a whole vocabulary waits until something is parsed.
        pieces = _pieces_of(self.tokenizer, ((self.tokenizer.id_to_token(token_id), token_id) for token_id in ids))
        read_back = "".join(map(pieces.__getitem__, ids)).encode("latin-1")
        if read_back != text.encode() or ids != in_stretches:
            raise DataError(
                f"the tokenizer turns {text!r} into {read_back!r}; answers need a byte-level tokenizer "
                "with <|coord_0|> … <|coord_999|> as added special tokens that strip no white space"
            )


def _ids_of(backend: Any, texts: Sequence[str]) -> tuple[int, ...]:
    """Ids of tokens that must exist, each once."""
    ids = [backend.token_to_id(text) for text in texts]
    missing = [text for text, token_id in zip(texts, ids, strict=True) if token_id is None]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(
            f"the tokenizer lacks {shown}; `boxloop init MODEL --out DIR` makes a checkpoint that has them, "
            "configs/stage1/qwen3_vl_full.yaml or qwen3_vl_dora.yaml then trains it (docs/stage1.md)"
        )
    if len(set(ids)) < len(ids):
        twice = [text for text, token_id in zip(texts, ids, strict=True) if ids.count(token_id) > 1]
        raise DataError(f"the tokenizer gives the same id to {', '.join(twice[:5])}; each needs its own")
    return tuple(ids)


def _pieces_of(backend: Any, ordinary: Iterable[tuple[str, int]]) -> _Pieces:
    """Bytes of tokens, as characters below U+0100: of the `ordinary` ones given, and of all that were added."""
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    if '"ByteLevel"' in json.dumps(decoder):
        table = _byte_level_table()
        pieces = _Pieces((token_id, token.translate(table)) for token, token_id in ordinary)
    else:
        pieces = _Pieces((token_id, _sentencepiece_bytes(token)) for token, token_id in ordinary)
    added = backend.get_added_tokens_decoder().items()
    pieces.update((token_id, token.content.encode().decode("latin-1")) for token_id, token in added)
    return pieces


def _byte_level_table() -> dict[int, int]:
    """The characters that byte-level BPE writes for bytes, back to the bytes.

    Printable Latin-1 stands for itself; the others are numbered on from U+0100 (Radford et al. 2019, GPT-2's encoder).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {0x100 + place: byte for place, byte in enumerate(others)}


def _sentencepiece_bytes(token: str) -> str:
    """A SentencePiece token: `▁` is a space, `<0x0A>` a single byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return chr(int(token[3:5], 16))
    return token.replace("▁", " ").encode().decode("latin-1")

"""Recognises the entries of an answer in marked text: strict JSON (RFC 8259), nothing repaired.

An entry is always scanned from its start; text that ends inside one raises `Unfinished`, and the caller comes back when
there is more. Strings are opaque, nesting is kept on a list (never on the call stack), and no expression here can
backtrack, so a scan is linear in what it reads.
"""

import json
import re
from dataclasses import dataclass

from learner.detection.vocabulary import ANY_COORDINATE, UNKNOWN

SPACE = re.compile(r"[ \t\n\r]*+")
_STRING_BODY = re.compile(rf'(?:[^"\\\x00-\x1f{UNKNOWN}]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{{4}}))*+')
_PARTIAL_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_ATOM_BODY = re.compile(r"[-+.0-9A-Za-z]*+")
_ATOM = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?|true|false|null")
_MARK = re.compile(f"[{ANY_COORDINATE}]")
_CLOSER = {"{": "}", "[": "]"}


class Unfinished(Exception):
    """The text ends before what is scanned does."""


class Invalid(Exception):
    """What is scanned is not JSON."""


@dataclass(frozen=True, slots=True)
class Field:
    """A key and a value inside an entry. Spans are offsets in the scanned text."""

    key: str
    value_start: int
    value_end: int


@dataclass(frozen=True, slots=True)
class Entry:
    """`"key": value` of the answer's top level; `fields` is None when the value is no object."""

    key: str
    fields: tuple[Field, ...] | None
    start: int
    end: int


def scan_entry(text: str, start: int) -> Entry:
    """Scan the entry whose key begins at or after `start`. Raises Unfinished or Invalid."""
    key, at = _scan_key(text, start)
    fields: list[Field] | None = None
    if text[at] == "{":
        fields, end = _scan_fields(text, at + 1)
    else:
        end = _scan_value(text, at)
    _check_utf8(text[start:end])
    return Entry(string_value(key), None if fields is None else tuple(fields), start, end)


def skip_space(text: str, at: int) -> int:
    """Offset of the first character at or after `at` that is no white space. Raises Unfinished at the end."""
    at = SPACE.match(text, at).end()  # type: ignore[union-attr]
    if at == len(text):
        raise Unfinished
    return at


def string_value(raw: str) -> str:
    """The value of a JSON string given in marked text, quotes included; coordinate tokens in it become their text."""
    if raw.isascii() and "\\" not in raw:
        return raw[1:-1]
    value: str = json.loads(plain_bytes(raw))
    return value


def plain_bytes(marked: str) -> bytes:
    """Marked text as the bytes it stands for, with coordinate tokens written out."""
    return _MARK.sub(lambda mark: f"<|coord_{ord(mark.group()) - 0x100}|>", marked).encode("latin-1")


def _scan_fields(text: str, at: int) -> tuple[list[Field], int]:
    """Members of an object, from behind its brace."""
    fields: list[Field] = []
    at = skip_space(text, at)
    if text[at] == "}":
        return fields, at + 1
    while True:
        key, value_start = _scan_key(text, at)
        value_end = _scan_value(text, value_start)
        fields.append(Field(key, value_start, value_end))
        at = skip_space(text, value_end)
        if text[at] == "}":
            return fields, at + 1
        at = _expect(text, at, ",")


def _scan_key(text: str, at: int) -> tuple[str, int]:
    """A key, its colon and the space around them: the raw key and where its value begins."""
    start = skip_space(text, at)
    end = _scan_string(text, start)
    return text[start:end], skip_space(text, _expect(text, skip_space(text, end), ":"))


def _expect(text: str, at: int, character: str) -> int:
    if text[at] != character:
        raise Invalid
    return at + 1


def _scan_string(text: str, at: int) -> int:
    end: int = _STRING_BODY.match(text, _expect(text, at, '"')).end()  # type: ignore[union-attr]
    if end == len(text) or _PARTIAL_ESCAPE.fullmatch(text, end):
        raise Unfinished
    return _expect(text, end, '"')


def _scan_atom(text: str, at: int) -> int:
    """A number, true, false or null. At the end of the text it could still go on."""
    end: int = _ATOM_BODY.match(text, at).end()  # type: ignore[union-attr]
    if end == len(text):
        raise Unfinished
    if not _ATOM.fullmatch(text, at, end):
        raise Invalid
    return end


def _scan_value(text: str, at: int) -> int:
    """Any value that begins at `at`; returns the offset behind it."""
    open_braces: list[str] = []
    while True:
        at = skip_space(text, at)
        first = text[at]
        if first in "{[":
            at = skip_space(text, at + 1)
            if text[at] != _CLOSER[first]:
                open_braces.append(first)
                if first == "{":
                    _, at = _scan_key(text, at)
                continue
            at += 1
        else:
            at = _scan_string(text, at) if first == '"' else _scan_atom(text, at)
        while open_braces:
            at = skip_space(text, at)
            if text[at] == ",":
                at += 1
                if open_braces[-1] == "{":
                    _, at = _scan_key(text, at)
                break
            at = _expect(text, at, _CLOSER[open_braces.pop()])
        else:
            return at


def _check_utf8(marked: str) -> None:
    """JSON is UTF-8. A coordinate token between two bytes of a character breaks it."""
    try:
        _MARK.sub("?", marked).encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise Invalid from None

"""Text as annotation tools leave it: UTF-8 with and without a byte-order mark, UTF-16, JSON with NaN."""

import codecs
import json
from typing import Any

from shared.errors import DataError

EXACT_JSON_INT = 2**53
"""The largest whole number that every reader of JSON keeps: those that hold floats alone lose what is beyond."""


def text_of(data: bytes) -> str:
    """The text of a file. Raises DataError for what is none."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"this is no text in {encoding.upper()}: {error.reason} at byte {error.start}") from None


def json_of(data: bytes) -> Any:
    """What a JSON file says. Raises DataError for what is none.

    Python's own reader takes NaN where nobody looks, as some tools write it, and keeps whole numbers exact.
    """
    try:
        return json.loads(text_of(data))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"this is no JSON: {error}") from None

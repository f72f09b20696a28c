"""What a file of JSON lines begins with, and what files begin with that are taken for one."""

import re
from pathlib import Path
from typing import BinaryIO

from shared.errors import DataError

BOM = b"\xef\xbb\xbf"
"""The mark that some editors put in front of UTF-8."""

_LOOK_BYTES = 4096
_OTHER_FILES = {
    b"\xff\xfe": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "compressed by gzip; unpack it: gunzip",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"BZh": "compressed by bzip2; unpack it: bunzip2",
    b"\xfd7zXZ": "compressed by xz; unpack it: unxz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it: unzstd",
    b"PAR1": "a Parquet file; write its rows as JSON, one a line",
}
_ARRAY = re.compile(rb"\s*\[\s*(\n|\{[^\n]*(,\s*\n|\s*\Z))")
_PRETTY = re.compile(rb"\s*\{[ \t\r]*\n\s*\"")
_OLD_MAC = re.compile(rb"[^\n]*\}\r[^\n]*\Z")


def begin_of_text(file: BinaryIO, path: str | Path) -> int:
    """Put `file` behind a byte-order mark, and return where that is.

    Raises DataError for a file that is not made of JSON lines at all, saying what it is and what to do.
    """
    head = file.read(_LOOK_BYTES)
    for magic, what in _OTHER_FILES.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}")
    begin = len(BOM) if head.startswith(BOM) else 0
    text = head[begin:]
    if _ARRAY.match(text):
        raise DataError(f"{path} is one JSON array, not a JSON object a line; convert it: jq -c '.[]' {path}")
    if _PRETTY.match(text):
        raise DataError(f"{path} has JSON objects over several lines, not one a line; convert it: jq -c . {path}")
    if _OLD_MAC.match(text):
        raise DataError(f"{path} has lines that end in CR alone; convert it: tr '\\r' '\\n'")
    file.seek(begin)
    return begin

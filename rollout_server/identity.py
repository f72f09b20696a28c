"""What tells one checkpoint's tokenizer from another's."""

import hashlib
from pathlib import Path

TOKENIZER_FILE = "tokenizer.json"


def tokenizer_digest(model: str) -> str:
    """sha256 of the checkpoint's tokenizer.json in hexadecimal; empty for a hub id or a directory without one."""
    file = Path(model) / TOKENIZER_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""

"""Paths as people write them: `~` is their home, and nothing else in them means anything but itself."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

_VARIABLE = re.compile(r"\$\{\w+\}|\$\w+")


def user_path(text: str) -> Path:
    """A path from a command line or a file. Raises ValueError for one that only an expanded variable could make."""
    return Path(expanded(text))


def expanded(text: str) -> str:
    """`text` with a leading `~` or `~name` replaced by that home, as shells do.

    Raises ValueError when its first folder is `$NAME` or `${NAME}` and there is none of that name: variables are the
    shell's, and such a folder would be made in silence.
    """
    text = os.path.expanduser(text)
    first = text.lstrip("/").partition("/")[0]
    if _VARIABLE.fullmatch(first) and not os.path.exists(text[: text.index(first) + len(first)]):
        raise ValueError(f"{first} is not expanded here and no folder has that name; write the whole path")
    return text


def _expand(value: object) -> object:
    return expanded(str(value)) if isinstance(value, str | os.PathLike) else value


UserPath = Annotated[Path, BeforeValidator(_expand)]
UserText = Annotated[str, BeforeValidator(_expand)]
"""The same for a text that may be a path, such as a checkpoint or a hub id."""

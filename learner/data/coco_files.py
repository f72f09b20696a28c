"""The image files that COCO annotations name: names come from other machines, systems and tools."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote


class ImageFiles:
    """Finds the files of a data set's images in a folder. Each file is found for one image alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: dict[Path, str] = {}

    def find(self, image: dict[str, Any], key: str) -> Path:
        """The file of the image with the id `key`: what its name says if that is there, else the likeliest.

        Other ways of writing a name are tried in turn: the slashes of Windows, percent escapes, the other Unicode form,
        and the name without folders in front, which are those of another machine. One that leads to no file, or to
        another image's, is left as it is written.
        """
        written = name_of(image)
        for name in spellings(written):
            path = self._folder / name
            owner = self._taken.get(path)
            if owner in (None, key) and _is_file(path):
                self._taken[path] = key
                return path
        return self._folder / written


def name_of(image: dict[str, Any]) -> str:
    """The name that an image has; LVIS v1 has only a URL, whose last two parts are folder and file.

    Raises KeyError or TypeError for an image without either.
    """
    name = image.get("file_name")
    if isinstance(name, str) and name:
        return name
    url = image["coco_url"]
    if not isinstance(url, str):
        raise TypeError(f"coco_url {url!r} is no text")
    return "/".join(url.split("/")[-2:])


def spellings(written: str) -> Iterator[str]:
    """All that a name may have been meant to say, the likeliest first."""
    texts = [written, written.replace("\\", "/")]
    texts += [unquote(text) for text in texts]
    texts += [unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in texts]
    for text in dict.fromkeys(texts):
        yield text
    for text in dict.fromkeys(texts):
        parts = [part for part in text.split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            yield "/".join(parts[start:])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False

"""The image files that annotations name: names come from other machines, systems and tools."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""How names of image files end, in small letters."""


class ImageFiles:
    """Finds the files of a data set's images in a folder. Each file is found for one image alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: dict[Path, str] = {}

    def find(self, names: Sequence[str], key: str) -> Path:
        """The file of the image with the id `key`: the first of its names that is there, else the likeliest.

        Other ways of writing a name are tried in turn: the slashes of Windows, percent escapes, the other Unicode form,
        and the name without folders in front, which are those of another machine. Where all lead to no file, or to
        another image's, the first is left as it is written.
        """
        for name in (spelling for written in names for spelling in spellings(written)):
            path = self._folder / name
            owner = self._taken.get(path)
            if owner in (None, key) and _is_file(path):
                self._taken[path] = key
                return path
        return self._folder / names[0]

    def find_beside(self, annotations: Path, written: str) -> Path:
        """The file of the only image in a file of annotations.

        They have one stem, also where the name inside is that of the file from which this one was copied, or its own.
        """
        alike, name = self._by_stem.get(annotations.stem), PurePosixPath(written)
        says_which = name.stem == annotations.stem and name.suffix.lower() in SUFFIXES
        names = (written, alike) if says_which else (alike, written)
        return self.find([each for each in names if each] or [annotations.stem], annotations.name)

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        """Names of the image files right in the folder."""
        return {path.stem: path.name for path in sorted(self._folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def images_below(folder: Path) -> Iterable[Path]:
    """The image files of a folder and its sub-folders by their names, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


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

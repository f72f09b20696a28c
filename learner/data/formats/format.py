"""What a format is: a name, what it looks like, and a way to find it in a folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from learner.data.annotations import AnnotatedImage, Conversion, Dataset
from shared.errors import DataError

LOOKED_AT = 16
"""Files of a kind in a folder that are looked at to tell a format: of a file an image there may be a million."""

WHOLE = ""
"""The name of the split that is all there is."""


class Places(NamedTuple):
    """`images` is the folder of the image files, None = where the format has it; `out` is the JSONL file to come."""

    images: Path | None
    out: Path


Opener = Callable[[Places], Dataset]
"""Opens one split. Raises OSError and DataError for what cannot be read at all."""

Splits = Mapping[str, Opener]
"""The splits of a data set by their names; none where it is not of the format that was looked for."""


class Format(NamedTuple):
    """A format of annotations. `example` stands behind `boxloop data from` in the help."""

    name: str
    layout: str
    example: str
    find: Callable[[Path], Splits]


def folders_by_split(place: Path, holds: Callable[[Path], bool]) -> dict[str, Path]:
    """The folder itself when it holds annotations, else its sub-folders, and those of data/, that do, by name."""
    if not place.is_dir():
        return {}
    if holds(place):
        return {WHOLE: place}
    folders = [folder for parent in (place, place / "data") if parent.is_dir() for folder in sorted(parent.iterdir())]
    return {folder.name: folder for folder in folders if folder.is_dir() and holds(folder)}


def each_readable(
    files: Iterable[Path], read: Callable[[Path], AnnotatedImage], conversion: Conversion
) -> Iterator[AnnotatedImage]:
    """What `read` makes of the files, one an image; those that it cannot are told."""
    for file in files:
        try:
            yield read(file)
        except (OSError, DataError) as error:
            conversion.lost.append(f"{file.name}: {error}")


def first_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder by which its format is told, in order."""
    return sorted(folder.glob(pattern))[:LOOKED_AT]


def first_folder(*folders: Path) -> Path:
    """The first of these that is there, else the last."""
    return next((folder for folder in folders if folder.is_dir()), folders[-1])

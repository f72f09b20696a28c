"""Rows of parquet files as Hugging Face `datasets` writes them, images inside; needs pyarrow."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from shared.errors import DataError
from shared.extras import cure_for, is_installed
from shared.whole_file import write_whole

_ROWS_AT_A_TIME = 16


class Row(NamedTuple):
    """A row without its image, which lies at `path`, and what messages call it."""

    name: str
    path: Path
    values: dict[str, Any]


def parquet_files(place: Path) -> dict[str, list[Path]]:
    """Parquet files of a folder and its data/ by split, as their names begin: train-00000-of-00002.parquet."""
    splits: dict[str, list[Path]] = {}
    for folder in (place, place / "data") if place.is_dir() else ():
        for file in sorted(folder.glob("*.parquet")):
            splits.setdefault(file.stem.split("-")[0], []).append(file)
    return splits


def parquet_names(file: Path) -> list[str]:
    """Names of the classes of `objects`, as the schema has them; none where it does not."""
    metadata = _opened(file).schema_arrow.metadata or {}
    try:
        objects = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]["objects"]
    except (ValueError, KeyError, TypeError):
        return []
    return next(iter(_names_in(objects)), [])


def parquet_rows(files: list[Path], folder: Path) -> Iterator[Row]:
    """Yield the rows in order; their images are written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        number = 0
        for batch in _opened(file).iter_batches(_ROWS_AT_A_TIME):
            for values in batch.to_pylist():
                number += 1
                name = f"{file.stem}-{number:06d}"
                yield Row(name, _image_file(values.pop("image", None), folder / name, file.parent), values)


def _image_file(image: Any, path: Path, origins: Path) -> Path:
    """The file of an image: its bytes, written to `path` with the suffix that it once had, else what its path names."""
    data, origin = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
    written = path.with_suffix(PurePosixPath(origin).suffix if isinstance(origin, str) else "")
    if isinstance(data, bytes):
        write_whole(written, data)
        return written
    return origins / origin if isinstance(origin, str) else written


def _names_in(node: Any) -> Iterator[list[str]]:
    if isinstance(node, dict):
        if node.get("_type") == "ClassLabel" and isinstance(node.get("names"), list):
            yield node["names"]
        for child in node.values():
            yield from _names_in(child)
    elif isinstance(node, list):
        for child in node:
            yield from _names_in(child)


def _opened(file: Path) -> Any:
    """Raises DataError for a file that is none, and where pyarrow is missing."""
    if not is_installed("pyarrow"):
        raise DataError(f"{file} takes pyarrow to read; {cure_for('pyarrow')}")
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: this is no parquet file: {error}") from None

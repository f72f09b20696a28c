"""A command that converts, and what came of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from learner.data.from_dataset import main

SIZE = (100, 50)
"""Of every image, in px."""


class Converted(NamedTuple):
    """Exit code, all that was said, and the records."""

    code: int
    said: str
    records: list[dict[str, Any]]

    @property
    def objects(self) -> list[list[tuple[str, list[float]]]]:
        """Desc and box of the objects of each record."""
        return [[(each["desc"], each["bbox_2d"]) for each in record["objects"]] for record in self.records]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for a data set."""
    path = tmp_path / "set"
    path.mkdir()
    return path


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    """Write a file of the data set: text, bytes, JSON of anything else; an image where there is no content."""

    def write(name: str, content: Any = None) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", SIZE).save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def convert(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Converted]:
    """Convert the data set, or a file in it."""

    def convert(*options: str, place: str = "") -> Converted:
        out = tmp_path / "out" / "train.jsonl"
        out.unlink(missing_ok=True)
        code = main([str(folder / place), "--out", str(out), *options])
        lines = out.read_text().splitlines() if out.exists() else []
        return Converted(code, "".join(capsys.readouterr()), [json.loads(line) for line in lines])

    return convert

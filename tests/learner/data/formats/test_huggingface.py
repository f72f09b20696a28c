"""Folders of Hugging Face `datasets`: objects as the documentation has them, names of classes, parquet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from learner.data.formats import parquet

Write = Callable[..., Any]
Convert = Callable[..., Any]

CARD = """---
dataset_info:
- features:
  - name: image
    dtype: image
  - name: weather
    dtype:
      class_label: {names: {'0': sun}}
  - name: objects
    sequence:
    - name: categories
      dtype:
        class_label:
          names:
            '0': black_cat
            '1': dog
---
# Cats
"""
OBJECTS = {"bbox": [[10, 5, 20, 20], [30, 25, -20, -20]], "categories": ["black_cat", "dog"]}
BOX = [10, 5, 30, 25]
FOUND = [("black cat", BOX), ("dog", BOX)]


@pytest.mark.parametrize(
    "objects",
    [
        OBJECTS,
        {"bbox": OBJECTS["bbox"], "category": [0, 1]},
        {"bbox": OBJECTS["bbox"], "categories": [0, "dog"], "id": [1, 2], "area": [None, 7]},
        [{"bbox": box, "category": number} for number, box in enumerate(OBJECTS["bbox"])],
    ],
)
def test_objects_are_read_however_they_are_written(write: Write, convert: Convert, objects: Any) -> None:
    write("README.md", CARD)
    write("train/a.png")
    write("train/metadata.jsonl", json.dumps({"file_name": "a.png", "objects": objects}) + "\n\n")
    done = convert()
    assert (done.code, done.objects) == (0, [FOUND])
    assert done.records[0]["images"] == ["../set/train/a.png"]
    assert convert("--classes").records[0]["classes"] == ["black cat", "dog"]


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        (
            {"bbox": [[1, 2, 3, 4]], "categories": [2]},
            "of categories without a name, the first: metadata.jsonl:2 object 1",
        ),
        ({"bbox": [[1, 2, 3, 4]]}, "of categories without a name"),
        ({"categories": ["cat"]}, "without a box or a segmentation"),
        ({"bbox": [[1, 2, 3]], "categories": ["cat"]}, "with a broken box, the first: metadata.jsonl:2 object 1: bbox"),
        ([7], "of categories without a name"),
    ],
)
def test_an_object_that_is_none_is_counted_and_named(write: Write, convert: Convert, objects: Any, reason: str) -> None:
    for name in "ab":
        write(f"{name}.png")
    rows = [{"file_name": "a.png", "objects": OBJECTS}, {"file_name": "b.png", "objects": objects}]
    write("metadata.jsonl", "\n".join(map(json.dumps, rows)))
    done = convert()
    assert (done.code, done.objects) == (0, [FOUND, []])
    assert f"left out    1 {reason}" in done.said


def test_rows_that_cannot_be_read_are_told(write: Write, convert: Convert) -> None:
    write("a.png")
    rows = ({"file_name": "a.png", "objects": OBJECTS}, "", [], {"file_name": 7}, {"file_name": "a.png", "objects": 7})
    write("metadata.jsonl", "\n".join(json.dumps(row) if row != "" else "{" for row in rows))
    done = convert()
    assert (done.code, done.objects) == (1, [FOUND])
    for said in ("metadata.jsonl:2: this is no JSON", ":3: this is no object", ":4: this is no", ":5: objects is '7'"):
        assert said in done.said


def test_parquet_without_pyarrow_says_what_to_install(
    write: Write, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "is_installed", lambda module: False)
    write("data/train-00000-of-00001.parquet", b"PAR1")
    done = convert()
    assert done.code == 2
    assert "train-00000-of-00001.parquet takes pyarrow to read; pip install 'boxloop[parquet]'" in done.said


def test_parquet_holds_images_which_become_files(write: Write, convert: Convert, folder: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'boxloop[parquet]'")
    from pyarrow.parquet import write_table

    label = {"feature": {"names": ["black_cat", "dog"], "_type": "ClassLabel"}, "_type": "Sequence"}
    features = {"info": {"features": {"objects": {"bbox": {"_type": "Sequence"}, "category": label}}}}
    data, rows = write("a.png").read_bytes(), 40
    objects = {"bbox": OBJECTS["bbox"], "category": [0, 1]}
    row = {"image_id": 7, "image": {"bytes": data, "path": "cats/a.png"}, "objects": objects}
    table = pyarrow.Table.from_pylist([row] * rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    for split in ("train", "test"):
        write(f"data/{split}-00000-of-00001.parquet", b"")
        write_table(table, folder / f"data/{split}-00000-of-00001.parquet")
    assert "its splits are test, train" in convert().said
    done = convert("--split", "train", "--classes")
    assert (done.code, done.objects) == (0, [FOUND] * rows)
    assert done.records[-1]["images"] == ["train_images/train-00000-of-00001-000040.png"]
    assert done.records[0]["classes"] == ["black cat", "dog"]
    with Image.open(tmp_path / "out" / done.records[0]["images"][0]) as image:
        assert image.size == (100, 50)
    path = {"bytes": None, "path": "../a.png"}
    write_table(
        pyarrow.Table.from_pylist([{"image": path, "objects": OBJECTS}]), folder / "data/test-00000-of-00001.parquet"
    )
    assert convert("--split", "test").records[0]["images"] == ["../set/a.png"]
    write("data/test-00000-of-00001.parquet", b"PAR1")
    assert "this is no parquet file" in convert("--split", "test").said

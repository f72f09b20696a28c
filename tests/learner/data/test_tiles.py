"""A tile shows what its annotations say, however it is turned."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from learner.data.annotators import Annotators
from learner.data.tiles import HELD_OUT, SYMMETRIES, Line, TileSet, Window, write_tiles
from learner.detection.record import read_records

WIDTH, HEIGHT, SIDE = 300, 200, 64
RED = (250, 0, 0)


def painted(boxes: list[tuple[int, int, int, int]]) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), (0, 0, 90))
    for box in boxes:
        image.paste(RED, box)
    return image


def red_box(tile: Image.Image) -> tuple[int, ...]:
    rows, columns = np.nonzero(np.asarray(tile)[:, :, 0] > 128)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@given(
    symmetry=st.sampled_from(SYMMETRIES),
    size=st.sampled_from([SIDE, 2 * SIDE]),
    corner=st.tuples(st.integers(-10, SIDE - 20), st.integers(-10, SIDE - 20)),
    sides=st.tuples(st.integers(12, 40), st.integers(12, 40)),
)
def test_a_box_lies_where_its_object_is_seen(
    symmetry: Image.Transpose | None, size: int, corner: tuple[int, int], sides: tuple[int, int]
) -> None:
    window = Window(100, 50, SIDE, symmetry)
    x, y = 100 + corner[0], 50 + corner[1]
    box = (x, y, x + sides[0], y + sides[1])
    placed = window.place(box, size)
    seen = window.cut(painted([box]), size)
    if placed is None:
        assert (np.asarray(seen)[:, :, 0] > 128).sum() * (SIDE / size) ** 2 <= 0.5 * sides[0] * sides[1] + 1
    else:
        assert red_box(seen) == pytest.approx(placed, abs=1)


@pytest.fixture
def tile_set(tmp_path: Path) -> TileSet:
    chooser = random.Random(7)
    corners = [(chooser.randint(0, WIDTH - 12), chooser.randint(0, HEIGHT - 12)) for _ in range(60)]
    boxes = [(x, y, x + 12, y + 12) for x, y in corners]
    painted(boxes).save(tmp_path / "large.png")
    objects = [{"desc": "tree", "bbox_2d": list(box)} for box in boxes]
    line = {"images": ["large.png"], "width": WIDTH, "height": HEIGHT, "objects": objects}
    return TileSet(tmp_path, [line], SIDE, SIDE, seed=3)


def written(tile_set: TileSet, directory: Path) -> dict[str, list[Line]]:
    return {
        "train": list(write_tiles(tile_set.train(40), directory)),
        "val": list(write_tiles(tile_set.val(), directory)),
    }


def test_no_training_tile_shows_what_is_held_out(tile_set: TileSet, monkeypatch: pytest.MonkeyPatch) -> None:
    border = round(WIDTH * (1 - HELD_OUT))
    cuts: dict[str, list[Window]] = {"train": [], "val": []}
    for split in cuts:
        monkeypatch.setattr(Window, "cut", lambda window, image, size, split=split: cuts[split].append(window))
        _ = list(tile_set.train(200) if split == "train" else tile_set.val())
    assert max(window.left + SIDE for window in cuts["train"]) <= border
    assert {window.left for window in cuts["val"]} == {border}
    assert {window.top for window in cuts["val"]} == {0, 64, 128}
    assert {window.symmetry for window in cuts["train"]} == set(SYMMETRIES)


def test_tiles_are_records_that_can_be_read_and_depend_on_the_seed_alone(tile_set: TileSet, tmp_path: Path) -> None:
    first, again = written(tile_set, tmp_path / "a"), written(tile_set, tmp_path / "b")
    assert first == again
    file = tmp_path / "a" / "train.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in first["train"]))
    records = list(read_records(file))
    assert [len(record.objects) for record in records] == [len(line["objects"]) for line in first["train"]]
    assert sum(len(record.objects) for record in records) > 40
    annotated = [Annotators(0.5, 0.05).annotate(line, 3) for line in first["train"]]
    shares = sum(len(line["objects"]) for line in annotated) / sum(len(line["objects"]) for line in first["train"])
    assert 0.3 < shares < 0.7

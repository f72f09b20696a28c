"""The synthetic data set is what its annotations say."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.data.shapes import (
    CANVAS_PX,
    COLOURS,
    FORMS,
    MAX_IOU,
    Scene,
    Shape,
    draw_scene,
    random_scene,
    render_shapes,
)
from learner.detection.record import read_records


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    canvas = np.zeros((2, CANVAS_PX, CANVAS_PX), dtype=bool)
    for layer, (x1, y1, x2, y2) in zip(canvas, (a, b), strict=True):
        layer[y1:y2, x1:x2] = True
    return (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", [20, 33, 46])
def test_a_shape_touches_all_four_sides_of_its_box(form: str, side: int) -> None:
    x, y = 17, 40
    image = draw_scene(Scene((240, 250, 230), (Shape("red", form, (x, y, x + side, y + side)),)))
    rows, columns = np.nonzero((np.asarray(image) == COLOURS["red"]).all(axis=2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x, y, x + side, y + side)


def test_scenes_keep_to_their_promises() -> None:
    scenes = [random_scene(random.Random(seed)) for seed in range(300)]
    assert {len(scene.shapes) for scene in scenes} == {1, 2, 3, 4, 5, 6}
    assert len({shape.desc for scene in scenes for shape in scene.shapes}) == len(COLOURS) * len(FORMS)
    for scene in scenes:
        assert min(scene.background) >= 225
        boxes = [shape.box for shape in scene.shapes]
        assert boxes == sorted(boxes, key=lambda box: (box[1], box[0]))
        for place, (x1, y1, x2, y2) in enumerate(boxes):
            assert 0 <= x1 < x2 <= CANVAS_PX
            assert 0 <= y1 < y2 <= CANVAS_PX
            assert 0.15 < (x2 - x1) / CANVAS_PX < 0.37
            assert all(iou(boxes[place], other) < MAX_IOU for other in boxes[:place])


@pytest.mark.slow
def test_the_files_read_as_records_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name, train, workers in (("a", 150, 2), ("b", 20, 1)):
        rendered = render_shapes(tmp_path / name, train=train, val=5, seed=3, keep_fraction=0.5, num_workers=workers)
        assert sum(rendered) == train + 5
    whole = lines_of(tmp_path / "a" / "train.jsonl")
    assert len(list(read_records(tmp_path / "a" / "train.jsonl"))) == 150
    assert whole[:20] == lines_of(tmp_path / "b" / "train.jsonl")
    for path in sorted((tmp_path / "b").rglob("*.png")):
        assert path.read_bytes() == (tmp_path / "a" / path.relative_to(tmp_path / "b")).read_bytes()

    assert lines_of(tmp_path / "a" / "train_single.jsonl") == [line for line in whole if len(line["objects"]) == 1]
    for full, part in zip(whole, lines_of(tmp_path / "a" / "train_partial.jsonl"), strict=True):
        assert part["images"] == full["images"]
        assert 1 <= len(part["objects"]) <= max(1, len(full["objects"]) / 2 + 0.5)
        assert [item for item in full["objects"] if item in part["objects"]] == part["objects"]

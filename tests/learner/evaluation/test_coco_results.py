"""What is written of predictions is what pycocotools reads, and scores as we do."""

import io
import json
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject, Record
from learner.evaluation.coco_ap import ScoredImage, average_precision
from learner.evaluation.coco_results import ResultFiles, image_ids, write_results

BOXES = ((100, 100, 300, 300), (500, 500, 900, 900), (10, 700, 90, 800))
LEAF = (100, 100, 300, 120, 280, 300, 120, 290)


def image_of(line: int, folder: Path, kind: str = "bbox_2d") -> ScoredImage:
    """Two objects, one found a little beside its place, one under another name, and a ghost."""
    shapes = BOXES if kind == "bbox_2d" else (LEAF, *BOXES[1:])
    objects = tuple(
        GroundTruthObject(desc, kind if place == 0 else "bbox_2d", shapes[place])  # type: ignore[arg-type]
        for place, desc in enumerate(("cat", "dog"))
    )
    moved = tuple(value + line for value in shapes[0])
    predictions = (
        Prediction(1, "cat", objects[0].kind, moved, tuple(range(len(moved)))),
        Prediction(2, "cat", "bbox_2d", shapes[1], (0, 1, 2, 3)),
        Prediction(3, "ghost", "bbox_2d", shapes[2], (0, 1, 2, 3)),
    )
    record = Record(f"val:{line}", (str(folder / "images" / f"{line}.png"),), 64 * line, 480, objects)
    return ScoredImage(record, predictions, (0.9 - line / 100, 1 / 3, 0.25))


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return tuple(json.loads((folder / name).read_text()) for name in ("predictions.json", "images.json"))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["bbox_2d", "poly"])
def test_pycocotools_scores_the_files_as_we_scored_the_answers(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("faster_coco_eval", reason="needs the extra eval")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [image_of(line, tmp_path, kind) for line in (2, 3, 9)]
    write_results(images, tmp_path, tmp_path)
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "images.json"))
        scored = COCOeval(
            truth, truth.loadRes(str(tmp_path / "predictions.json")), "segm" if kind == "poly" else "bbox"
        )
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    expected = average_precision(images).overall
    assert 0 < expected["ap"] < 1
    assert scored.stats[:3] == pytest.approx([expected[name] for name in ("ap", "ap50", "ap75")], abs=1e-6)


def test_ids_are_told(tmp_path: Path) -> None:
    write_results([image_of(line, tmp_path) for line in (7, 4)], tmp_path, tmp_path)
    predictions, images = read(tmp_path)
    assert images["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "ghost"}]
    assert images["images"][0] == {
        "id": 7, "file_name": "images/7.png", "width": 448, "height": 480, "record_id": "val:7",
    }  # fmt: skip
    assert [(each["image_id"], each["category_id"]) for each in predictions] == [
        (7, 1), (7, 1), (7, 3), (4, 1), (4, 1), (4, 3),
    ]  # fmt: skip
    assert predictions[1]["score"] == 0.333333
    x, y, width, height = predictions[1]["bbox"]
    assert (x, y) == pytest.approx((500 / 999 * 448, 500 / 999 * 480), abs=1e-3)
    assert (width, height) == pytest.approx((400 / 999 * 448, 400 / 999 * 480), abs=2e-3)


def test_images_have_the_ids_of_their_records_or_their_lines(tmp_path: Path) -> None:
    records = [image_of(line, tmp_path).record for line in (2, 3)]

    def with_ids(*ids: object) -> list[Record]:
        return [replace(record, metadata={"image_id": id}) for record, id in zip(records, ids, strict=True)]

    assert image_ids(records) == [2, 3]
    assert image_ids(with_ids(391895, 0)) == [391895, 0]
    for ids in ((5, 5), (5, "6"), (5, None), (True, 6), (-1, 6), (2**53, 6)):
        assert image_ids(with_ids(*ids)) == [2, 3], ids


def test_what_was_added_before_an_error_is_whole_and_in_place(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), ResultFiles(tmp_path, tmp_path, ["dog"]) as files:
        files.add(image_of(3, tmp_path), 3, picture="3.jpg")
        raise KeyboardInterrupt
    predictions, images = read(tmp_path)
    assert len(predictions) == 3
    assert [each["picture"] for each in images["images"]] == ["3.jpg"]
    assert [each["name"] for each in images["categories"]] == ["dog", "cat", "ghost"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.json", "predictions.json"]


def test_nothing_at_all_is_two_files_too(tmp_path: Path) -> None:
    write_results([], tmp_path, tmp_path)
    predictions, images = read(tmp_path)
    assert predictions == images["images"] == images["annotations"] == []

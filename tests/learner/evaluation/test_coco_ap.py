"""Average precision and recall are pycocotools' own, to the last digits that it prints and beyond."""

import contextlib
import io
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.data.annotations import Conversion
from learner.data.coco import annotated_images
from learner.data.conversion import records_of
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject, Record, read_record
from learner.detection.record_rules import Kind, Rules
from learner.evaluation.coco_ap import (
    STATISTICS,
    IouType,
    ScoredImage,
    average_precision,
    coco_dataset,
    coco_detections,
)

REAL_ANNOTATIONS = Path(
    os.environ.get("BOXLOOP_LVIS_ANNOTATIONS", Path(__file__).parents[3] / "shared" / "lvis_val_50.json")
)
BOX = (100, 100, 300, 300)
SIZES = ((96, 160), (640, 320), (480, 640), (1600, 900), (100, 100))
"""Width and height in px: what is small on one image is large on another."""


def prediction(desc: str, bins: Sequence[int], kind: Kind = "bbox_2d") -> Prediction:
    return Prediction(1, desc, kind, tuple(bins), tuple(range(len(bins))))


def shaken(bins: Sequence[int], dice: random.Random, by: int) -> tuple[int, ...]:
    moved = [min(max(value + dice.randint(-by, by), 0), 999) for value in bins]
    if len(moved) == 4:
        x1, y1, x2, y2 = moved
        return min(x1, x2), min(y1, y2), max(x1, x2) + 1, max(y1, y2) + 1
    return tuple(moved)


def answered(record: Record, dice: random.Random, descs: Sequence[str]) -> ScoredImage:
    """Most objects found, more or less well, some under another name, some twice, and some that are not there."""
    predictions = []
    for item in record.objects:
        for _ in range(dice.choice((0, 1, 1, 1, 2))):
            desc = item.desc if dice.random() < 0.8 else dice.choice(descs)
            predictions.append(prediction(desc, shaken(item.bins, dice, by=dice.choice((2, 10, 40))), item.kind))
    predictions += [prediction(dice.choice((*descs, "ghost")), shaken(BOX, dice, by=90)) for _ in range(2)]
    scores = tuple(round(dice.random(), 2) for _ in predictions)  # two digits, so that some are equal
    return ScoredImage(record, tuple(predictions), scores)


def made_up(kinds: Sequence[Kind]) -> list[ScoredImage]:
    dice, descs = random.Random(0), ("cat", "dog", "red circle")
    shapes: dict[Kind, tuple[int, ...]] = {"bbox_2d": BOX, "poly": (100, 100, 300, 120, 280, 310, 90, 250)}
    images = []
    for number in range(30):
        kind = kinds[number % len(kinds)]
        objects = tuple(
            GroundTruthObject(dice.choice(descs), kind, shaken(shapes[kind], dice, by=80)) for _ in range(number % 7)
        )
        width, height = SIZES[number % len(SIZES)]
        images.append(answered(Record(f"val:{number}", ("i.png",), width, height + number, objects), dice, descs))
    return images


def real(kind: Kind) -> list[ScoredImage]:
    if not REAL_ANNOTATIONS.is_file():
        pytest.skip(f"no real annotations at {REAL_ANNOTATIONS}; name a file by BOXLOOP_LVIS_ANNOTATIONS")
    annotations = json.loads(REAL_ANNOTATIONS.read_text())
    conversion = Conversion()
    lines = records_of(annotated_images(annotations, Path("images"), conversion), Path(), kind, conversion)
    records = [
        read_record(json.dumps(line).encode(), "val.jsonl", number, Rules(check_images=False))
        for number, line in enumerate(lines, 1)
    ]
    descs = sorted({item.desc for record in records for item in record.objects})
    dice = random.Random(1)
    return [answered(record, dice, descs) for record in records]


def coco_json(images: Sequence[ScoredImage], iou_type: IouType) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same images as COCO's annotations and results, written from the format's description and no code of ours.

    Categories are numbered as they are met, since pycocotools breaks ties of score by category where it joins them.
    """
    from pycocotools import mask

    def shape(item: GroundTruthObject | Prediction, record: Record) -> dict[str, Any]:
        px = np.array(item.bins).reshape(-1, 2) / 999 * (record.width, record.height)
        (x1, y1), (x2, y2) = px.min(axis=0), px.max(axis=0)
        if iou_type == "bbox":
            return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        corners = px.ravel() if item.kind == "poly" else (x1, y1, x2, y1, x2, y2, x1, y2)
        runs = mask.merge(mask.frPyObjects([list(map(float, corners))], record.height, record.width))
        return {"segmentation": runs, "area": float(mask.area(runs))}

    names: dict[str, int] = {}
    objects = [(place, image.record, item) for place, image in enumerate(images) for item in image.record.objects]
    annotations = [
        {"id": number, "image_id": place, "iscrowd": 0, "category_id": names.setdefault(item.desc, len(names) + 1)}
        | shape(item, record)
        for number, (place, record, item) in enumerate(objects, 1)
    ]
    results = [
        {"image_id": place, "category_id": names.get(item.desc, 1000), "score": score} | shape(item, image.record)
        for place, image in enumerate(images)
        for item, score in zip(image.predictions, image.scores, strict=True)
    ]
    pictures = [
        {"id": place, "width": image.record.width, "height": image.record.height} for place, image in enumerate(images)
    ]
    categories = [{"id": number, "name": name} for name, number in names.items()]
    return {"images": pictures, "categories": categories, "annotations": annotations}, results


def by_pycocotools(images: Sequence[ScoredImage], iou_type: IouType, *, by_desc: bool) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset, results = coco_json(images, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = dataset
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), iou_type)
        if not by_desc:
            evaluation.params.useCats = 0
            evaluation.params.catIds = [*evaluation.params.catIds, 1000]  # it leaves out what is not listed
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("by_desc", [True, False], ids=["by desc", "agnostic"])
@pytest.mark.parametrize(
    ("images", "iou_type"),
    [
        pytest.param(lambda: made_up(["bbox_2d"]), "bbox", id="boxes"),
        pytest.param(lambda: made_up(["poly", "bbox_2d"]), "segm", id="polygons"),
        pytest.param(lambda: real("bbox_2d"), "bbox", id="real boxes"),
        pytest.param(lambda: real("poly"), "segm", id="real polygons"),
    ],
)
def test_all_twelve_numbers_are_those_of_pycocotools(images, iou_type: IouType, by_desc: bool) -> None:
    scored = images()
    reference = by_pycocotools(scored, iou_type, by_desc=by_desc)
    ours = average_precision(scored, by_desc=by_desc)
    expected = dict(zip(STATISTICS, reference.stats.tolist(), strict=True))
    assert ours.overall == pytest.approx(expected, abs=1e-6)
    assert len({round(ours.overall[f"ap_{size}"], 6) for size in ("small", "medium", "large")}) == 3
    assert 0.05 < ours.overall["ap"] < 0.95, "nothing is compared when all is right or wrong"
    if by_desc:
        precision, recall = reference.eval["precision"][:, :, :, 0, 2], reference.eval["recall"][:, :, 0, 2]
        for place, of_class in enumerate(ours.by_desc.values()):
            assert of_class.ap == pytest.approx(np.mean(precision[:, :, place]), abs=1e-6)
            assert of_class.ap50 == pytest.approx(np.mean(precision[0, :, place]), abs=1e-6)
            assert of_class.ar100 == pytest.approx(np.mean(recall[:, place]), abs=1e-6)


def test_boxes_stand_in_px_of_their_image() -> None:
    """On 1998 x 999 px a bin is two px wide and one high."""
    record = Record("val:1", ("i.png",), 1998, 999, (GroundTruthObject("cat", "bbox_2d", (10, 20, 40, 100)),))
    image = ScoredImage(record, (prediction("dog", (0, 900, 999, 999)), prediction("cat", BOX)), (0.5, 0.25))
    dataset = coco_dataset([image])
    (annotation,) = dataset["annotations"]
    assert annotation.pop("bbox") == pytest.approx([20, 20, 60, 80])
    assert annotation.pop("area") == pytest.approx(60 * 80)
    assert annotation == {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0}
    assert dataset["images"] == [{"id": 1, "width": 1998, "height": 999}]
    assert dataset["categories"] == [{"id": 1, "name": "cat"}]
    dog, cat = coco_detections([image])
    assert dog["bbox"] == pytest.approx([0, 900, 1998, 99])
    assert (dog["score"], dog["category_id"], cat["score"], cat["category_id"]) == (0.5, 2, 0.25, 1)


def test_masks_are_as_high_and_wide_as_their_image() -> None:
    from pycocotools import mask

    objects = (
        GroundTruthObject("cat", "bbox_2d", (10, 20, 40, 100)),
        GroundTruthObject("cat", "poly", (0, 0, 100, 0, 0, 100)),
    )
    dataset = coco_dataset([ScoredImage(Record("val:1", ("i.png",), 1998, 999, objects), (), ())])
    rectangle, triangle = dataset["annotations"]
    expected = np.zeros((999, 1998), np.uint8)
    expected[20:100, 20:80] = 1
    assert (mask.decode(rectangle["segmentation"]) == expected).all()
    assert rectangle["area"] == 80 * 60
    assert triangle["area"] == pytest.approx(200 * 100 / 2, rel=0.02)


def image_of(objects: Sequence[str], *predictions: tuple[str, float]) -> ScoredImage:
    record = Record("val:1", ("i.png",), 640, 480, tuple(GroundTruthObject(desc, "bbox_2d", BOX) for desc in objects))
    return ScoredImage(
        record, tuple(prediction(desc, BOX) for desc, _ in predictions), tuple(score for _, score in predictions)
    )


def test_a_sure_false_alarm_costs_more_than_an_unsure_one() -> None:
    wrong = prediction("cat", (600, 600, 700, 700))
    first = image_of(["cat"], ("cat", 0.5))

    def with_alarm(score: float) -> float:
        image = ScoredImage(first.record, (*first.predictions, wrong), (*first.scores, score))
        return average_precision([image]).overall["ap"]

    assert with_alarm(0.4) == pytest.approx(1)
    assert with_alarm(0.6) == pytest.approx(0.5)


def test_a_name_that_nothing_has_counts_only_where_names_play_no_part() -> None:
    images = [image_of(["cat"], ("ghost", 0.9), ("cat", 0.5))]
    assert average_precision(images).overall["ap"] == pytest.approx(1)
    assert average_precision([image_of(["cat"], ("ghost", 0.9))]).overall["ap"] == 0
    assert average_precision([image_of(["cat"], ("ghost", 0.9))], by_desc=False).overall["ap"] == pytest.approx(1)


def test_answers_without_objects_are_scored_0() -> None:
    precision = average_precision([image_of(["cat", "dog"])])
    assert (precision.overall["ap"], precision.overall["ar100"]) == (0, 0)
    assert {desc: of_class.ap for desc, of_class in precision.by_desc.items()} == {"cat": 0, "dog": 0}


def test_without_ground_truth_there_is_nothing_to_score() -> None:
    assert average_precision([image_of([], ("cat", 0.5))]).overall == {}

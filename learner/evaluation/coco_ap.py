"""COCO's average precision and recall (Lin et al. 2014), as pycocotools counts them, by faster-coco-eval.

A category is a desc of the ground truth. Objects are compared in px of their image: by box, or by mask when there is a
polygon anywhere in the set. A prediction whose desc no annotation has belongs to no category; it counts only where
descs play no part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from learner.detection.geometry import px_of_bins
from learner.detection.matching import Shape
from learner.detection.prediction import Prediction
from learner.detection.record import Record

STATISTICS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""COCO's twelve numbers, in its order."""

IouType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class ScoredImage:
    """A record and what was predicted for it; `scores` has one number for each prediction, higher = surer."""

    record: Record
    predictions: tuple[Prediction, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class ClassPrecision:
    """Over the ground truth of one desc: AP over IoU 0.50:0.95 and at 0.50, AR of up to 100 predictions an image."""

    ap: float
    ap50: float
    ar100: float


@dataclass(frozen=True)
class Precision:
    """Numbers of a whole set, by the names of STATISTICS; one that has nothing to count is left out."""

    overall: dict[str, float]
    by_desc: dict[str, ClassPrecision]


def average_precision(images: Sequence[ScoredImage], *, by_desc: bool = True) -> Precision:
    """Score a set of images; without `by_desc` all objects are of one category."""
    dataset, detections = coco_dataset(images), coco_detections(images)
    if not dataset["annotations"]:
        return Precision({}, {})
    statistics, precision, recall = _evaluated(dataset, detections, iou_type_of(images), by_desc)
    return Precision(
        overall={name: float(value) for name, value in zip(STATISTICS, statistics, strict=True) if value >= 0},
        by_desc={
            category["name"]: ClassPrecision(
                ap=float(precision[:, :, place].mean()),
                ap50=float(precision[0, :, place].mean()),
                ar100=float(recall[:, place].mean()),
            )
            for place, category in enumerate(dataset["categories"] if by_desc else ())
        },
    )


def iou_type_of(images: Sequence[ScoredImage]) -> IouType:
    """Masks as soon as one object is a polygon."""
    kinds: set[str] = {item.kind for image in images for item in image.record.objects}
    kinds |= {item.kind for image in images for item in image.predictions}
    return "segm" if "poly" in kinds else "bbox"


def coco_dataset(images: Sequence[ScoredImage]) -> dict[str, Any]:
    """The ground truth as COCO JSON. Ids count from 1, images and descs in the order given."""
    category_of = _categories(images)
    by_mask = iou_type_of(images) == "segm"
    annotations = [
        {"image_id": image_id, "category_id": category_of[item.desc], "iscrowd": 0, **_shape(item, image, by_mask)}
        for image_id, image in enumerate(images, 1)
        for item in image.record.objects
    ]
    return {
        "images": [
            {"id": image_id, "width": image.record.width, "height": image.record.height}
            for image_id, image in enumerate(images, 1)
        ],
        "categories": [{"id": category_id, "name": desc} for desc, category_id in category_of.items()],
        "annotations": [{"id": place, **annotation} for place, annotation in enumerate(annotations, 1)],
    }


def coco_detections(images: Sequence[ScoredImage]) -> list[dict[str, Any]]:
    """The predictions as COCO results; a desc without annotations has a category id of none."""
    category_of = _categories(images)
    by_mask = iou_type_of(images) == "segm"
    return [
        {
            "image_id": image_id,
            "category_id": category_of.get(prediction.desc, len(category_of) + 1),
            "score": score,
            **_shape(prediction, image, by_mask),
        }
        for image_id, image in enumerate(images, 1)
        for prediction, score in zip(image.predictions, image.scores, strict=True)
    ]


def _categories(images: Sequence[ScoredImage]) -> dict[str, int]:
    descs = dict.fromkeys(item.desc for image in images for item in image.record.objects)
    return {desc: category_id for category_id, desc in enumerate(descs, 1)}


def _shape(shape: Shape, image: ScoredImage, by_mask: bool) -> dict[str, Any]:
    """Box (x, y, width, height) or run-length mask in px, with its area in px²."""
    record = image.record
    points = px_of_bins(shape.bins, record.width, record.height)
    if not by_mask:
        x1, y1, x2, y2 = points
        return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
    from faster_coco_eval import mask

    if shape.kind == "bbox_2d":
        x1, y1, x2, y2 = points
        points = (x1, y1, x2, y1, x2, y2, x1, y2)
    (runs,) = mask.frPyObjects([list(points)], record.height, record.width)
    return {"segmentation": runs, "area": float(mask.area(runs))}


def _evaluated(
    dataset: dict[str, Any], detections: list[dict[str, Any]], iou_type: IouType, by_desc: bool
) -> tuple[Any, Any, Any]:
    """COCO's twelve numbers, precision [IoU, recall, category] and recall [IoU, category] over all areas."""
    from faster_coco_eval import COCO, COCOeval_faster

    ground_truth = COCO(dataset)
    evaluation = COCOeval_faster(ground_truth, ground_truth.loadRes(detections), iou_type, rle_iou_max_workers=1)
    if not by_desc:
        evaluation.params.useCats = 0
        # pycocotools takes the objects of the listed categories even then.
        evaluation.params.catIds = sorted({each["category_id"] for each in (*dataset["annotations"], *detections)})
    evaluation.run()
    return (
        np.asarray(evaluation.stats),
        np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1],
        np.asarray(evaluation.eval["recall"])[:, :, 0, -1],
    )

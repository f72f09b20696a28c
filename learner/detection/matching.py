"""Pairs predictions with ground-truth objects: one optimal assignment (Kuhn 1955; Carion et al. 2020 for detection).

`desc` takes no part. The result depends on the arguments alone: ties go to the lower index wherever there is a choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from learner.detection.geometry import bounding_box, box_iou
from learner.detection.raster import mask_iou, rasterise
from shared.errors import ConfigError


class Shape(Protocol):
    """A prediction or a ground-truth object. `kind` is "bbox_2d" or "poly", `bins` flat x, y, x, y, …"""

    @property
    def kind(self) -> str: ...
    @property
    def bins(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class MatchingConfig:
    """How pairs are judged. Costs are in units of 1 − IoU; `maskiou_resolution` is in pixels of a square canvas."""

    candidate_top_k: int = 5
    maskiou_resolution: int = 256
    maskiou_gate: float = 0.3
    fp_cost: float = 1.0
    fn_cost: float = 1.0

    def __post_init__(self) -> None:
        if self.candidate_top_k < 1 or self.maskiou_resolution < 1:
            raise ConfigError(
                f"candidate_top_k and maskiou_resolution must be ≥ 1, got {self.candidate_top_k} and "
                f"{self.maskiou_resolution}"
            )


@dataclass(frozen=True)
class Match:
    """Who belongs to whom. `pairs` are (prediction, ground truth, IoU) by prediction; the others are listed in order.

    `gating_rejections` counts candidate pairs whose IoU was under the gate.
    """

    pairs: tuple[tuple[int, int, float], ...] = ()
    missing: tuple[int, ...] = ()
    extra: tuple[int, ...] = ()
    gating_rejections: int = 0


DEFAULT_MATCHING = MatchingConfig()


def match_objects(
    predictions: Sequence[Shape], ground_truth: Sequence[Shape], config: MatchingConfig = DEFAULT_MATCHING
) -> Match:
    """Find the assignment of least cost.

    A pair costs 1 − IoU, an unmatched prediction `fp_cost`, an unmatched ground truth `fn_cost`. Candidates of a
    prediction are the `candidate_top_k` ground truths of highest box IoU above 0; pairs of IoU under `maskiou_gate` are
    forbidden. IoU is exact for two boxes, and of masks when a polygon takes part (of boxes again where a shape is too
    small for the canvas).
    """
    if not predictions or not ground_truth:
        return Match(missing=tuple(range(len(ground_truth))), extra=tuple(range(len(predictions))))
    shapes = (*predictions, *ground_truth)
    boxes = np.array([bounding_box(shape.bins) for shape in shapes], dtype=np.float64)
    iou = box_iou(boxes[: len(predictions)], boxes[len(predictions) :])
    candidates = _candidates(iou, config.candidate_top_k)
    if "poly" in [shape.kind for shape in shapes]:
        _put_mask_iou(iou, candidates, predictions, ground_truth, config.maskiou_resolution)
    allowed = candidates & (iou >= config.maskiou_gate)
    # What a pair saves against leaving both sides alone; an assignment of nothing but savings is optimal.
    saved = np.maximum(allowed * (iou + (config.fp_cost + config.fn_cost - 1.0)), 0.0)
    rows, columns = linear_sum_assignment(saved, maximize=True)
    pairs = [(i, j, iou.item(i, j)) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if saved.item(i, j)]
    matched, found = {i for i, _, _ in pairs}, {j for _, j, _ in pairs}
    return Match(
        pairs=tuple(pairs),
        missing=tuple([j for j in range(len(ground_truth)) if j not in found]),
        extra=tuple([i for i in range(len(predictions)) if i not in matched]),
        gating_rejections=int(np.count_nonzero(candidates) - np.count_nonzero(allowed)),
    )


def _candidates(iou: NDArray[np.float64], top_k: int) -> NDArray[np.bool_]:
    """[P, G]: which ground truths are looked at for each prediction."""
    candidates = iou > 0
    if iou.shape[1] > top_k:
        for row in (candidates.sum(axis=1) > top_k).nonzero()[0]:
            candidates[row, np.argsort(-iou[row], kind="stable")[top_k:]] = False
    return candidates


def _put_mask_iou(
    iou: NDArray[np.float64],
    candidates: NDArray[np.bool_],
    predictions: Sequence[Shape],
    ground_truth: Sequence[Shape],
    resolution: int,
) -> None:
    """Put the mask IoU where a polygon takes part. Each shape is rasterised at most once.

    A shape too small to fill a pixel keeps its box IoU.
    """
    pairs = [
        (i, j)
        for i, j in np.argwhere(candidates).tolist()
        if predictions[i].kind == "poly" or ground_truth[j].kind == "poly"
    ]
    shapes = list(dict.fromkeys(bins for i, j in pairs for bins in (predictions[i].bins, ground_truth[j].bins)))
    masks = dict(zip(shapes, rasterise(shapes, resolution), strict=True)) if shapes else {}
    for i, j in pairs:
        a, b = masks[predictions[i].bins], masks[ground_truth[j].bins]
        if a.area and b.area:
            iou[i, j] = mask_iou(a, b)

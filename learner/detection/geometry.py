"""Boxes and polygons in bins: quantisation, intersection over union, rasters."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learner.detection.vocabulary import NUM_BINS

MAX_BIN = NUM_BINS - 1


def bin_of_px(value: float, size: float) -> int:
    """Quantise a pixel coordinate along an axis of `size` px: clamp(round(999 · value / size), 0, 999)."""
    return min(max(round(MAX_BIN * value / size), 0), MAX_BIN)


def px_of_bin(bin: float, size: float) -> float:
    """The pixel coordinate that a bin stands for, along an axis of `size` px."""
    return bin / MAX_BIN * size


def bins_of_px(values: Sequence[float], width: float, height: float) -> tuple[int, ...]:
    """Quantise x, y, x, y, … in px."""
    return tuple(bin_of_px(value, height if place % 2 else width) for place, value in enumerate(values))


def px_of_bins(bins: Sequence[float], width: float, height: float) -> tuple[float, ...]:
    """Pixel coordinates of x, y, x, y, … in bins."""
    return tuple(px_of_bin(bin, height if place % 2 else width) for place, bin in enumerate(bins))


def widened(box: tuple[int, ...]) -> tuple[int, ...]:
    """The box (x1, y1, x2, y2) with an axis of zero extent widened by one bin, inside 0..999."""
    x1, y1, x2, y2 = box
    if x1 == x2:
        x1, x2 = (x1, x1 + 1) if x1 < MAX_BIN else (x1 - 1, x1)
    if y1 == y2:
        y1, y2 = (y1, y1 + 1) if y1 < MAX_BIN else (y1 - 1, y1)
    return x1, y1, x2, y2


def bounding_box(bins: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest box (x1, y1, x2, y2) around a box or polygon; it may have zero extent."""
    if len(bins) == 4:
        return bins
    xs, ys = bins[::2], bins[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def box_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pairwise IoU of boxes `a` [P, 4] and `b` [G, 4] (x1, y1, x2, y2 in bins, with positive extent) as [P, G].

    A box without extent has IoU 0 with everything.
    """
    # Axis by axis, so that the innermost loop runs over all of `b` and not over the two axes.
    a_x1, a_y1, a_x2, a_y2 = a.T[:, :, None]
    b_x1, b_y1, b_x2, b_y2 = b.T
    width = np.maximum(np.minimum(a_x2, b_x2) - np.maximum(a_x1, b_x1), 0.0)
    height = np.maximum(np.minimum(a_y2, b_y2) - np.maximum(a_y1, b_y1), 0.0)
    intersection = width * height
    union = (a_x2 - a_x1) * (a_y2 - a_y1) + (b_x2 - b_x1) * (b_y2 - b_y1) - intersection
    iou: NDArray[np.float64] = intersection / np.maximum(union, 1.0)  # whole bins: only a union of nothing is below 1
    return iou

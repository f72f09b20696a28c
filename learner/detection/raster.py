"""Masks of boxes and polygons on a small canvas, and their intersection over union."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.detection.geometry import MAX_BIN


@dataclass(frozen=True)
class Mask:
    """The filled pixels of a shape: a boolean window [height, width] whose first pixel is (top, left) of the canvas."""

    top: int
    left: int
    pixels: NDArray[np.bool_]
    area: int


def rasterise(bins: tuple[int, ...], resolution: int) -> Mask:
    """Fill a shape given in bins on a canvas of `resolution` × `resolution` pixels.

    A pixel is filled when its centre is inside by the even-odd rule; a shape that covers no centre has area 0.
    """
    corners = np.array(_corners(bins), dtype=np.float64) * (resolution / MAX_BIN)
    left, top = np.floor(corners.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(corners.max(axis=0)).astype(int).tolist()
    height, width = bottom - top, right - left
    x1, y1 = corners.T
    x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
    centres = np.arange(top, bottom) + 0.5
    crosses = (y1 <= centres[:, None]) != (y2 <= centres[:, None])
    rows, edges = np.nonzero(crosses)
    slope = (x2[edges] - x1[edges]) / (y2[edges] - y1[edges])
    crossing = x1[edges] + (centres[rows] - y1[edges]) * slope
    # The first pixel whose centre is at or behind the crossing; behind the window there is none.
    columns = np.clip(np.ceil(crossing - 0.5).astype(int) - left, 0, width)
    toggles = np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1))
    parity = toggles.astype(np.uint8).reshape(height, width + 1)[:, :width]
    pixels = (np.cumsum(parity, axis=1, dtype=np.uint8) & 1).astype(bool)
    return Mask(top, left, pixels, int(np.count_nonzero(pixels)))


def mask_iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of the same canvas; 0 when nothing is filled."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.pixels.shape[0], b.top + b.pixels.shape[0])
    right = min(a.left + a.pixels.shape[1], b.left + b.pixels.shape[1])
    if bottom <= top or right <= left:
        return 0.0
    window_a = a.pixels[top - a.top : bottom - a.top, left - a.left : right - a.left]
    window_b = b.pixels[top - b.top : bottom - b.top, left - b.left : right - b.left]
    intersection = int(np.count_nonzero(window_a & window_b))
    union = a.area + b.area - intersection
    return intersection / union if union else 0.0


def _corners(bins: tuple[int, ...]) -> list[tuple[int, int]]:
    """Vertices of a polygon, or the four of a box."""
    if len(bins) == 4:
        x1, y1, x2, y2 = bins
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    return list(zip(bins[::2], bins[1::2], strict=True))

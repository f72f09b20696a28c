"""Masks of boxes and polygons on a small canvas, and their intersection over union."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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


def rasterise(shapes: Sequence[tuple[int, ...]], resolution: int) -> list[Mask]:
    """Fill shapes given in bins on a canvas of `resolution` × `resolution` pixels, all of them in one go.

    A pixel is filled when its centre is inside by the even-odd rule; a shape that covers no centre has area 0.
    """
    corners = [_corners(bins) for bins in shapes]
    windows = [_window(points, resolution) for points in corners]
    # Each window has one more column than the mask, so that every crossing has a pixel to start at.
    ends = list(accumulate(height * (width + 1) for _, _, height, width in windows))
    edges = np.array(
        [
            (*point, *following, end - height * (width + 1), top, left, width)
            for points, (top, left, height, width), end in zip(corners, windows, ends, strict=True)
            for point, following in zip(points, (*points[1:], points[0]), strict=True)
        ],
        dtype=np.float64,
    )
    toggles = np.bincount(_crossings(edges, resolution), minlength=ends[-1]).astype(np.uint8)
    # A row is crossed an even number of times, so the parity is back at 0 where the next one begins.
    parity = np.cumsum(toggles, dtype=np.uint8) & 1
    masks = []
    for (top, left, height, width), end in zip(windows, ends, strict=True):
        flat = parity[end - height * (width + 1) : end]
        pixels = flat.reshape(height, width + 1)[:, :width].astype(bool)
        masks.append(Mask(top, left, pixels, int(np.count_nonzero(pixels))))
    return masks


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


def _window(points: list[tuple[int, int]], resolution: int) -> tuple[int, int, int, int]:
    """The pixels around a shape: top, left, height, width."""
    scale = resolution / MAX_BIN
    xs, ys = [x for x, _ in points], [y for _, y in points]
    top, left = int(min(ys) * scale), int(min(xs) * scale)
    return top, left, math.ceil(max(ys) * scale) - top, math.ceil(max(xs) * scale) - left


def _crossings(edges: NDArray[np.float64], resolution: int) -> NDArray[np.int64]:
    """Where pixel rows' centre lines cross edges, as flat places of the first pixel with its centre at or behind.

    `edges` [E, 8] are x1, y1, x2, y2 in bins, then what is to be known of the shape's window: its place in the flat
    array, top, left, width.
    """
    # From top to bottom, so that an edge walked both ways crosses a row at the same place to the last bit.
    upward = edges[:, 1] > edges[:, 3]
    ends = np.where(upward[:, None], edges[:, [2, 3, 0, 1]], edges[:, :4])
    x1, y1, x2, y2 = ends.T * (resolution / MAX_BIN)
    first = np.ceil(y1 - 0.5).astype(np.int64)
    counts = np.ceil(y2 - 0.5).astype(np.int64) - first
    edge = np.repeat(np.arange(len(edges)), counts)
    rows = np.arange(len(edge)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    base, top, left, width = edges[edge, 4:].T
    slope = (x2 - x1) / np.where(y1 == y2, 1.0, y2 - y1)
    crossing = x1[edge] + (rows + 0.5 - y1[edge]) * slope[edge]
    columns = np.minimum(np.maximum(np.ceil(crossing - 0.5) - left, 0), width)
    places: NDArray[np.float64] = base + (rows - top) * (width + 1) + columns
    return places.astype(np.int64)

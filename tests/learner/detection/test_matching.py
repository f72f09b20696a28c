"""Matching: exact overlaps, the best assignment there is, and what the gate forbids."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from learner.detection import matching
from learner.detection.geometry import bin_of_px, box_iou, px_of_bin, px_of_bins
from learner.detection.matching import Match, MatchingConfig, match_objects
from learner.detection.raster import Mask, mask_iou, rasterise
from shared.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    bins: tuple[int, ...]
    kind: str = "bbox_2d"


coordinate = st.integers(0, 30)
small_boxes = st.tuples(coordinate, coordinate, st.integers(1, 12), st.integers(1, 12)).map(
    lambda box: Shape((box[0], box[1], box[0] + box[2], box[1] + box[3]))
)


def exact_iou(a: Shape, b: Shape) -> float:
    """Count unit squares."""
    cells = [{(x, y) for x in range(x1, x2) for y in range(y1, y2)} for x1, y1, x2, y2 in (a.bins, b.bins)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


Iou = Callable[[Shape, Shape], float]


def cheapest(
    predictions: list[Shape], truth: list[Shape], config: MatchingConfig, nearness: Iou, similarity: Iou
) -> float:
    """Least cost over all assignments, by trying each one. `nearness` chooses candidates, `similarity` judges them."""
    near = [[nearness(a, b) for b in truth] for a in predictions]
    candidates = [
        [j for j in sorted(range(len(truth)), key=lambda j, row=row: (-row[j], j))[: config.candidate_top_k] if row[j]]
        for row in near
    ]
    iou = [{j: similarity(a, truth[j]) for j in picks} for a, picks in zip(predictions, candidates, strict=True)]
    best = np.inf
    for choice in itertools.product(*[[None, *(j for j in row if row[j] >= config.maskiou_gate)] for row in iou]):
        used = [j for j in choice if j is not None]
        if len(set(used)) == len(used):
            cost = sum(1 - iou[i][j] for i, j in enumerate(choice) if j is not None)
            cost += config.fp_cost * (len(predictions) - len(used)) + config.fn_cost * (len(truth) - len(used))
            best = min(best, cost)
    return best


@settings(max_examples=100, deadline=None)
@given(
    st.lists(small_boxes, max_size=4),
    st.lists(small_boxes, max_size=4),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    st.sampled_from([0.1, 0.5, 1.0]),
)
def test_the_assignment_costs_as_little_as_the_best_of_all(
    predictions: list[Shape], truth: list[Shape], top_k: int, gate: float, cost: float
) -> None:
    config = MatchingConfig(candidate_top_k=top_k, maskiou_gate=gate, fp_cost=cost, fn_cost=cost)
    match = match_objects(predictions, truth, config)
    total = sum(1 - iou for _, _, iou in match.pairs) + cost * (len(match.extra) + len(match.missing))
    assert total == pytest.approx(cheapest(predictions, truth, config, exact_iou, exact_iou))
    for i, j, iou in match.pairs:
        assert iou == pytest.approx(exact_iou(predictions[i], truth[j]))
        assert iou >= gate
    assert sorted([i for i, _, _ in match.pairs] + list(match.extra)) == list(range(len(predictions)))
    assert sorted([j for _, j, _ in match.pairs] + list(match.missing)) == list(range(len(truth)))
    assert match == match_objects(predictions, truth, config)


CANVAS = 12
anywhere = st.integers(0, 999)
large_boxes = st.tuples(st.integers(0, 800), st.integers(0, 800), st.integers(100, 900), st.integers(100, 900)).map(
    lambda box: Shape((box[0], box[1], min(box[0] + box[2], 999), min(box[1] + box[3], 999)))
)
polygons = st.lists(st.tuples(anywhere, anywhere), min_size=3, max_size=5).map(
    lambda points: Shape(tuple(itertools.chain(*points)), "poly")
)
shapes = st.lists(st.one_of(polygons, polygons, large_boxes), max_size=4)


def around(shape: Shape) -> tuple[int, ...]:
    xs, ys = shape.bins[::2], shape.bins[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def iou_around(a: Shape, b: Shape) -> float:
    """Overlap of what is around two shapes, whose area is exact in whole numbers."""
    boxes = around(a), around(b)
    x1, y1 = (max(box[axis] for box in boxes) for axis in (0, 1))
    x2, y2 = (min(box[axis] for box in boxes) for axis in (2, 3))
    shared = max(0, x2 - x1) * max(0, y2 - y1)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes) - shared
    return shared / union if union else 0.0


def filled(shape: Shape) -> np.ndarray:
    corners = shape.bins
    if shape.kind == "bbox_2d":
        x1, y1, x2, y2 = shape.bins
        corners = (x1, y1, x2, y1, x2, y2, x1, y2)
    pixels, clear = inside(corners, CANVAS)
    assume(clear.all())
    return pixels


def iou_drawn(a: Shape, b: Shape) -> float:
    """Exact where both are boxes or one fills no pixel, else of pixels."""
    if a.kind == b.kind == "bbox_2d" or not (filled(a).any() and filled(b).any()):
        return iou_around(a, b)
    return float((filled(a) & filled(b)).sum() / (filled(a) | filled(b)).sum())


@settings(max_examples=40, deadline=None)
@given(shapes, shapes, st.sampled_from([1, 2, 5]), st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.4, 1.0]))
def test_the_assignment_of_polygons_costs_as_little_as_the_best_of_all(
    predictions: list[Shape], truth: list[Shape], top_k: int, gate: float, cost: float
) -> None:
    config = MatchingConfig(top_k, CANVAS, gate, cost, cost)
    match = match_objects(predictions, truth, config)
    for i, j, iou in match.pairs:
        assert iou == pytest.approx(iou_drawn(predictions[i], truth[j]))
        assert iou >= gate
    total = sum(1 - iou for _, _, iou in match.pairs) + cost * (len(match.extra) + len(match.missing))
    assert total == pytest.approx(cheapest(predictions, truth, config, iou_around, iou_drawn))


def test_each_polygon_is_rasterised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []

    def noted(shapes: Sequence[tuple[int, ...]], resolution: int) -> list[Mask]:
        drawn.extend(shapes)
        return rasterise(shapes, resolution)

    monkeypatch.setattr(matching, "rasterise", noted)
    predictions = [Shape((0, 0, 900, by, by, 900), "poly") for by in range(5)]
    truth = [Shape((9, 9, 800 + by, 9, 9, 800 + by), "poly") for by in range(7)]
    assert len(match_objects(predictions, truth, MatchingConfig(candidate_top_k=7)).pairs) == 5
    assert sorted(drawn) == sorted(shape.bins for shape in (*predictions, *truth))


def test_one_assignment_for_all_beats_the_greedy_one() -> None:
    truth = [Shape((0, 0, 10, 10)), Shape((0, 0, 10, 14))]
    predictions = [Shape((0, 0, 10, 11)), Shape((0, 0, 10, 10))]
    assert [(i, j) for i, j, _ in match_objects(predictions, truth).pairs] == [(0, 1), (1, 0)]


def test_the_gate_rejects_and_counts() -> None:
    match = match_objects([Shape((0, 0, 10, 10))], [Shape((0, 0, 10, 100)), Shape((50, 50, 60, 60))])
    assert match == Match(missing=(0, 1), extra=(0,), gating_rejections=1)


def test_nothing_to_match() -> None:
    assert match_objects([], [Shape((0, 0, 1, 1))]) == Match(missing=(0,))
    assert match_objects([Shape((0, 0, 1, 1))], []) == Match(extra=(0,))
    assert match_objects([], []) == Match()


def test_polygons_are_compared_as_masks() -> None:
    triangle = Shape((0, 0, 800, 0, 0, 800), "poly")
    box = Shape((0, 0, 800, 800))
    ((_, _, iou),) = match_objects([triangle], [box]).pairs
    assert iou == pytest.approx(0.5, abs=0.01)
    ((_, _, same),) = match_objects([triangle], [triangle]).pairs
    assert same == 1.0
    other_half = Shape((800, 800, 800, 0, 0, 800), "poly")
    assert match_objects([triangle], [other_half]).gating_rejections == 1


def test_polygons_smaller_than_a_pixel_are_compared_by_their_boxes() -> None:
    tiny, moved = Shape((498, 498, 500, 498, 500, 500), "poly"), Shape((498, 498, 500, 499, 500, 500), "poly")
    assert rasterise([tiny.bins], 256)[0].area == 0
    ((_, _, iou),) = match_objects([tiny], [moved]).pairs
    assert iou == 1.0


def test_a_bad_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="candidate_top_k"):
        MatchingConfig(candidate_top_k=0)


# --- rasters and boxes ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def inside(bins: tuple[int, ...], resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """The even-odd rule at each pixel centre, edge by edge; and the centres that no edge runs through."""
    points = [(x / 999 * resolution, y / 999 * resolution) for x, y in zip(bins[::2], bins[1::2], strict=True)]
    filled = np.zeros((resolution, resolution), dtype=bool)
    clear = np.ones_like(filled)
    for row, column in itertools.product(range(resolution), repeat=2):
        x, y = column + 0.5, row + 0.5
        for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
            if (y1 <= y) != (y2 <= y):
                distance = x - (x1 + (y - y1) * (x2 - x1) / (y2 - y1))
                filled[row, column] ^= distance >= 0
                clear[row, column] &= abs(distance) > 1e-9
    return filled, clear


@pytest.mark.parametrize("bins", [(0, 0, 0, 0, 243, 243), (10, 900, 700, 13, 10, 900), (5, 5, 500, 500, 400, 400)])
def test_a_line_walked_both_ways_fills_nothing(bins: tuple[int, ...]) -> None:
    assert rasterise([bins], 256)[0].area == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=6, max_size=14).filter(lambda values: len(values) % 2 == 0))
def test_a_polygon_fills_the_pixels_whose_centres_are_inside(values: list[int]) -> None:
    _, mask, _ = rasterise([(0, 0, 999, 999), tuple(values), (3, 3, 500, 700)], 16)
    canvas = np.zeros((16, 16), dtype=bool)
    canvas[mask.top : mask.top + mask.pixels.shape[0], mask.left : mask.left + mask.pixels.shape[1]] = mask.pixels
    expected, clear = inside(tuple(values), 16)
    assert np.array_equal(canvas[clear], expected[clear])
    assert mask.area == canvas.sum()


def test_mask_iou_of_shapes_that_fill_nothing_is_zero() -> None:
    (line,) = rasterise([(5, 5, 900, 5, 400, 5)], 256)
    assert line.area == 0
    assert mask_iou(line, line) == 0.0


def test_box_iou_without_extent_is_zero() -> None:
    flat, box = np.array([[5.0, 5, 5, 9]]), np.array([[0.0, 0, 10, 10]])
    assert box_iou(flat, box).tolist() == box_iou(flat, flat).tolist() == [[0.0]]


@given(st.integers(0, 999), st.integers(1, 5000))
def test_quantisation_is_the_inverse_of_its_inverse(bin: int, size: int) -> None:
    assert bin_of_px(px_of_bin(bin, size), size) == bin
    assert px_of_bins((bin, bin), size, 1.0) == (px_of_bin(bin, size), bin / 999)


def test_quantisation_rounds_half_to_even_and_clamps() -> None:
    assert [bin_of_px(value, 1998) for value in (1, 3, 5, -7, 5000)] == [0, 2, 2, 0, 999]

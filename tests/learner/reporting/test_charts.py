"""Charts say what their numbers say."""

import json
import re
from html import unescape
from itertools import pairwise

import pytest

from learner.reporting.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MANY_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    Share,
    duration,
    line_chart,
    number,
    running_mean,
    share_bar,
    ticks,
)


def corners(svg: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'points="([^"]+)"', svg)
    return [[(float(x), float(y)) for x, y in (corner.split(",") for corner in line.split())] for line in lines]


def test_a_line_goes_from_axis_to_axis() -> None:
    (line,) = corners(line_chart("Recall", [Series("recall", [(0, 0.0), (5, 0.5), (10, 1.0)], 1)], share=True))
    left, right = LEFT, WIDTH - RIGHT
    bottom, top = HEIGHT - BOTTOM, TOP
    assert line == [(left, bottom), ((left + right) / 2, (bottom + top) / 2), (right, top)]


def test_the_legend_shows_the_newest_value_and_the_hover_data_all_of_them() -> None:
    chart = line_chart("Loss", [Series("A <1>", [(1, 2.0), (2, 0.125)], 3)], "nats")
    assert "A &lt;1&gt; <b data-value>0.125</b>" in chart
    data = re.search(r'data-series="([^"]*)"', chart)
    assert data is not None
    assert json.loads(unescape(data[1])) == [{"label": "A <1>", "points": [[1, 2.0], [2, 0.125]]}]


def test_a_chart_without_finite_points_is_left_out() -> None:
    assert line_chart("Loss", []) == ""
    assert line_chart("Loss", [Series("loss", [(1, float("nan")), (2, float("inf"))], 1)]) == ""
    assert "nan" not in line_chart("Loss", [Series("loss", [(1, float("nan")), (2, 3.0)], 1)])


def test_a_single_and_a_constant_point_stay_inside_the_frame() -> None:
    for points in ([(7, 0.0)], [(1, 3.0), (2, 3.0)]):
        for line in corners(line_chart("Loss", [Series("loss", points, 1)])):
            assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in line)


def test_a_long_noisy_series_gets_its_running_mean() -> None:
    points = [(step, float(step % 2)) for step in range(MANY_POINTS)]
    assert len(corners(line_chart("Loss", [Series("loss", points, 1)]))) == 2
    assert len(corners(line_chart("Loss", [Series("loss", points, 1)], noisy=False))) == 1


def test_the_running_mean_looks_back_over_its_window() -> None:
    assert running_mean([(1, 4.0), (2, 2.0), (3, 0.0), (4, 6.0)], 2) == [(1, 4.0), (2, 3.0), (3, 1.0), (4, 3.0)]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.97), (-3, 412), (1e-5, 2e-5), (0, 7e6)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    values = ticks(low, high)
    assert 2 <= len(values) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)
    steps = {float(f"{b - a:.6g}") for a, b in pairwise(values)}
    assert len(steps) == 1
    assert f"{steps.pop():e}"[0] in "125"


def test_a_bar_s_parts_are_shares_of_the_whole() -> None:
    bar = share_bar("Learner", [Share("computing", 30, 1), Share("waiting", 10, 2), Share("syncing", 0, 3)])
    assert re.findall(r"width:([\d.]+)%", bar) == ["75.000", "25.000"]
    assert "syncing" not in bar
    assert share_bar("Learner", [Share("computing", 0, 1)]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.500"), (0.01234, "0.0123"), (12.345, "12.3"), (2293.4, "2 293"), (2e-5, "2.0e-05")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (287.3, "4 min 47 s"), (7265, "2 h 01 min")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def step_labels(chart: str) -> list[str]:
    return re.findall(r'text-anchor="middle">([^<]+)', chart)


def test_steps_are_whole_numbers() -> None:
    assert step_labels(line_chart("Loss", [Series("A", [(1, 2.0), (3, 1.0)], 1)])) == ["1", "2", "3"]


def test_a_single_step_stands_in_the_middle() -> None:
    chart = line_chart("Loss", [Series("A", [(3, 2.0)], 1)])
    assert step_labels(chart) == ["2", "3", "4"]
    assert f'cx="{(LEFT + WIDTH - RIGHT) / 2:.1f}"' in chart

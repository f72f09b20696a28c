"""Line charts and share bars as SVG and HTML text, without a plotting library."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 340, 185
"""Near the px that a chart gets on a phone and in a column of a large screen, so that its text keeps its size."""
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 24
MANY_POINTS = 80
"""From here on a series has no dots, and a noisy one is drawn faintly with its running mean over it."""


@dataclass(frozen=True)
class Series:
    """One line. `colour` is the number of a palette entry, from 1."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int


@dataclass(frozen=True)
class Share:
    """A part of a whole, in seconds."""

    label: str
    seconds: float
    colour: int


@dataclass(frozen=True)
class Scale:
    """A linear map from values to px."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(title: str, series: Sequence[Series], unit: str = "", *, share: bool = False, noisy: bool = True) -> str:
    """A titled chart over steps; empty text when no series has a finite point.

    `share` draws the axis from 0 to 1 at least; `noisy` puts the running mean over long series.
    """
    finite = [Series(each.label, _finite(each.points), each.colour) for each in series]
    drawn = [each for each in finite if each.points]
    if not drawn:
        return ""
    xs = [x for each in drawn for x, _ in each.points]
    ys = [y for each in drawn for _, y in each.points]
    low, high = (0.0, max(1.0, *ys)) if share else _padded(min(ys), max(ys))
    alone = min(xs) == max(xs)  # a single step stands in the middle
    across = Scale(min(xs) - alone, max(xs) + alone, LEFT, WIDTH - RIGHT)
    up = Scale(low, high, HEIGHT - BOTTOM, TOP)
    lines = "".join(_line(each, across, up, noisy) for each in drawn)
    hover = json.dumps([{"label": each.label, "points": [[x, y] for x, y in each.points]} for each in drawn])
    legend = "".join(
        f'<span class="key"><i class="swatch c{each.colour}"></i>{escape(each.label)} '
        f"<b data-value>{number(each.points[-1][1])}</b></span>"
        for each in drawn
    )
    heading = escape(title) + (f' <span class="unit">{escape(unit)}</span>' if unit else "")
    return (
        f'<figure class="chart" data-low="{across.low}" data-high="{across.high}" data-series="{escape(hover)}">'
        f"<figcaption><h4>{heading}</h4><p>{legend}</p></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{_axes(across, up)}{lines}"
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="-9" x2="-9"/></svg></figure>'
    )


def share_bar(title: str, shares: Sequence[Share]) -> str:
    """A stacked bar with a legend in seconds; empty text when nothing took any time."""
    total = sum(share.seconds for share in shares)
    if total <= 0:
        return ""
    present = [share for share in shares if share.seconds > 0]
    parts = "".join(
        f'<i class="c{each.colour}" style="width:{100 * each.seconds / total:.3f}%"></i>' for each in present
    )
    legend = "".join(
        f'<span class="key"><i class="swatch c{each.colour}"></i>{escape(each.label)} '
        f"<b>{each.seconds / total:.0%}</b> {duration(each.seconds)}</span>"
        for each in present
    )
    return (
        f'<figure class="shares"><figcaption><h4>{escape(title)} <span class="unit">{duration(total)}</span></h4>'
        f'</figcaption><div class="bar">{parts}</div><p>{legend}</p></figure>'
    )


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Each value averaged with up to `window` − 1 before it."""
    means, total = [], 0.0
    for place, (x, y) in enumerate(points):
        total += y - (points[place - window][1] if place >= window else 0.0)
        means.append((x, total / min(place + 1, window)))
    return means


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values from `low` to `high`, about `count` of them, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.75 * rough)
    return [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Three significant digits, with thousands apart."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:,.{min(digits, 4)}f}".replace(",", " ")
    return f"{value:.1e}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range a little wider than the values, from 0 when they come near it."""
    if low == high:
        return low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    margin = 0.06 * (high - low)
    return (0.0 if 0 <= low < 0.4 * high else low - margin), high + margin


def _axes(across: Scale, up: Scale) -> str:
    horizontal = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(value):.1f}" y2="{up(value):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
        for value in ticks(up.low, up.high)
    )
    vertical = "".join(
        f'<text x="{across(value):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{_tick(value)}</text>'
        for value in ticks(across.low, across.high, 5)
        if value.is_integer()  # there is no half step
    )
    return horizontal + vertical


def _tick(value: float) -> str:
    return f"{value:.4g}" if value == 0 or 1e-4 <= abs(value) < 1e5 else f"{value:.0e}"


def _line(series: Series, across: Scale, up: Scale, noisy: bool) -> str:
    points = series.points
    if len(points) >= MANY_POINTS and not noisy:
        return _path(points, across, up, f"s{series.colour}")
    if len(points) >= MANY_POINTS:
        means = running_mean(points, max(2, len(points) // 25))
        return _path(points, across, up, f"s{series.colour} raw") + _path(means, across, up, f"s{series.colour}")
    dots = "".join(
        f'<circle class="c{series.colour}" r="2.4" cx="{across(x):.1f}" cy="{up(y):.1f}"/>' for x, y in points
    )
    return _path(points, across, up, f"s{series.colour}") + dots


def _path(points: Sequence[tuple[float, float]], across: Scale, up: Scale, names: str) -> str:
    corners = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    return f'<polyline class="{names}" points="{corners}"/>'

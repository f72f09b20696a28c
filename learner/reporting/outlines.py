"""Boxes and polygons with their names, drawn over a photograph."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from learner.detection.geometry import px_of_bins
from learner.reporting.fonts.choice import drawable, font_for

LABEL_SIZE, PADDING_PX = 13, 4
DOTS = "..."
"""In a font that every label has."""
Colour = tuple[int, int, int]
Plate = tuple[float, float, float, float]
"""left, top, right and bottom of a label, in px."""


@dataclass(frozen=True)
class Outline:
    """A box or polygon in panel px with its label; `dashed` ones are not in the answer."""

    points: tuple[tuple[float, float], ...]
    label: str
    colour: Colour
    dashed: bool = False


def resized(image: Image.Image, longest_px: int) -> Image.Image:
    """The image with its longer side at `longest_px`."""
    scale = longest_px / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def with_outlines(
    photograph: Image.Image, outlines: Sequence[Outline], *, labels_may_overlap: bool = True
) -> Image.Image:
    """A copy of the image with outlines drawn first and labels over them, where they cover no other label.

    Where there is no such place a label is drawn over others, or left out.
    """
    panel = photograph.copy()
    canvas = ImageDraw.Draw(panel)
    for outline in outlines:
        _trace(canvas, outline)
    taken: list[Plate] = []
    for outline in outlines:
        label = shortened(drawable(outline.label), panel.width - 2 * PADDING_PX)
        places = _places(outline, _length(label), panel.size)
        free = (place for place in places if not any(_overlap(place, other) for other in taken))
        plate = next(free, places[0] if labels_may_overlap else None)
        if plate is None:
            continue
        taken.append(plate)
        canvas.rounded_rectangle(plate, 3, outline.colour)
        canvas.text((plate[0] + PADDING_PX, plate[1] + 1), label, "white", font_for(label, LABEL_SIZE))
    return panel


def shortened(label: str, most_px: float) -> str:
    """A label that is no longer than so many px; what is missing of it is told by three dots."""
    if _length(label) <= most_px:
        return label
    too_many = bisect_right(range(len(label)), most_px, key=lambda count: _length(label[:count] + DOTS))
    return label[: too_many - 1] + DOTS if too_many else ""


def _length(label: str) -> float:
    return font_for(label, LABEL_SIZE).getlength(label)


def _places(outline: Outline, length_px: float, size: tuple[int, int]) -> list[Plate]:
    """Where a label may go, the best place first: above its outline, below it, or inside."""
    width, height = length_px + 2 * PADDING_PX, LABEL_SIZE + 6
    xs, ys = zip(*outline.points, strict=True)
    left = min(max(0.0, min(xs)), max(0.0, size[0] - width - 1))
    tops = (min(ys) - height - 1, max(ys) + 2, min(ys) + 3, max(ys) - height - 3)
    inside = (max(0.0, min(top, size[1] - height - 1)) for top in tops)
    return [(left, top, left + width, top + height) for top in inside]


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _trace(canvas: ImageDraw.ImageDraw, outline: Outline) -> None:
    """Draw a closed line over a white one, so that it stands out on any image."""
    ends = [*outline.points[1:], outline.points[0]]
    for colour, width in (((255, 255, 255), 5), (outline.colour, 3)):
        for start, end in zip(outline.points, ends, strict=True):
            for a, b in _dashes(start, end) if outline.dashed else [(start, end)]:
                canvas.line([a, b], colour, width)


def _dashes(
    start: tuple[float, float], end: tuple[float, float]
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """A line cut into an odd number of equal pieces, of which every second one is drawn."""
    length = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    pieces = 2 * max(1, round(length / 16)) + 1
    at = [
        (start[0] + (end[0] - start[0]) * place / pieces, start[1] + (end[1] - start[1]) * place / pieces)
        for place in range(pieces + 1)
    ]
    return [(at[place], at[place + 1]) for place in range(0, pieces, 2)]


def points_of(bins: tuple[int, ...], kind: str, width: int, height: int) -> tuple[tuple[float, float], ...]:
    """Corners in px of a panel of this size."""
    flat = px_of_bins(bins, width - 1, height - 1)
    if kind == "bbox_2d":
        x1, y1, x2, y2 = flat
        return (x1, y1), (x2, y1), (x2, y2), (x1, y2)
    return tuple(zip(flat[::2], flat[1::2], strict=True))

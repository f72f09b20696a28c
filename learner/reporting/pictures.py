"""One answer as a picture: the ground truth on the left, what the model wrote on the right.

A matched pair bears the same number on both sides: the object's place in the ground truth, from 1.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw

from learner.data.images import read_image
from learner.detection.geometry import px_of_bins
from learner.detection.matching import Match
from learner.detection.prediction import Prediction
from learner.detection.record import Record
from learner.reporting.fonts.choice import drawable, font_for
from shared.errors import DataError

LOG = logging.getLogger(__name__)

PANEL_PX = 480
"""The longer side of each panel; small images are enlarged to it, so that labels are legible."""
MARGIN_PX = 12
TITLE_PX = 26
CAPTION_PX = 30
LABEL_SIZE, TITLE_SIZE = 13, 15
PAPER, INK, FADED = (250, 250, 247), (32, 33, 36), (110, 112, 118)

Verdict = Literal["matched", "misnamed", "missing", "appended", "extra"]
Colour = tuple[int, int, int]
VERDICT_COLOURS: dict[Verdict, Colour] = {
    "matched": (20, 120, 80),
    "misnamed": (150, 110, 0),
    "missing": (176, 40, 120),
    "appended": (176, 40, 120),
    "extra": (200, 70, 10),
}


@dataclass(frozen=True)
class PictureSample:
    """What is drawn. `appended` are the indices of ground-truth objects that a target added to the answer."""

    record: Record
    predictions: tuple[Prediction, ...]
    match: Match
    appended: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outline:
    """A box or polygon in panel px with its label; `dashed` ones are not in the answer."""

    points: tuple[tuple[float, float], ...]
    label: str
    colour: Colour
    dashed: bool = False


def try_to_draw(sample: PictureSample, file: Path) -> None:
    """Write a sample's picture; one whose image cannot be read any more is left out with a warning."""
    try:
        draw(sample).save(file)
    except DataError as error:
        LOG.warning("no picture: %s", error)


def draw(sample: PictureSample) -> Image.Image:
    """Draw a sample; reads the record's image. Raises DataError when that cannot be read."""
    _, opened = read_image(sample.record)
    photograph = enlarged(opened.image)
    width, height = photograph.size
    sheet = Image.new("RGB", (2 * width + 3 * MARGIN_PX, TITLE_PX + height + CAPTION_PX + MARGIN_PX), PAPER)
    canvas = ImageDraw.Draw(sheet)
    panels = (
        ("Ground truth", truth_outlines(sample, width, height)),
        ("Answer", answer_outlines(sample, width, height)),
    )
    for place, (title, outlines) in enumerate(panels):
        left = MARGIN_PX + place * (width + MARGIN_PX)
        canvas.text((left, MARGIN_PX - 6), title, INK, font_for(title, TITLE_SIZE))
        sheet.paste(with_outlines(photograph, outlines), (left, TITLE_PX))
    told = drawable(caption(sample))
    canvas.text((MARGIN_PX, TITLE_PX + height + 9), told, FADED, font_for(told, LABEL_SIZE))
    return sheet


def truth_outlines(sample: PictureSample, width: int, height: int) -> list[Outline]:
    """The annotated objects: matched, missing, or missing and appended."""
    matched = {truth for _, truth, _ in sample.match.pairs}
    outlines = []
    for place, item in enumerate(sample.record.objects):
        verdict: Verdict = "matched" if place in matched else "appended" if place in sample.appended else "missing"
        label = f"{place + 1} {item.desc}" if verdict == "matched" else f"{item.desc} · {verdict}"
        points = _points(item.bins, item.kind, width, height)
        outlines.append(Outline(points, label, VERDICT_COLOURS[verdict], dashed=verdict != "matched"))
    return outlines


def answer_outlines(sample: PictureSample, width: int, height: int) -> list[Outline]:
    """The predicted objects: matched with their IoU, the same under another name, or extra."""
    matched = {prediction: (truth, iou) for prediction, truth, iou in sample.match.pairs}
    outlines = []
    for place, item in enumerate(sample.predictions):
        verdict: Verdict = "extra"
        label = f"{item.desc} · extra"
        if place in matched:
            truth, iou = matched[place]
            right = sample.record.objects[truth].desc
            verdict = "matched" if item.desc == right else "misnamed"
            label = f"{truth + 1} {item.desc} · {iou:.2f}" + ("" if verdict == "matched" else f" · not {right}")
        points = _points(item.bins, item.kind, width, height)
        outlines.append(Outline(points, label, VERDICT_COLOURS[verdict]))
    return outlines


def caption(sample: PictureSample) -> str:
    """The picture in one line."""
    match = sample.match
    parts = [
        sample.record.record_id,
        f"{len(sample.record.objects)} objects",
        f"{len(sample.predictions)} predicted",
        f"{len(match.pairs)} matched",
    ]
    if match.pairs:
        parts.append(f"mean IoU {sum(iou for _, _, iou in match.pairs) / len(match.pairs):.2f}")
    parts += [f"{len(match.extra)} extra", f"{len(match.missing)} missing"]
    return "  ·  ".join(parts)


def enlarged(image: Image.Image) -> Image.Image:
    """The image with its longer side at PANEL_PX."""
    scale = PANEL_PX / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def with_outlines(photograph: Image.Image, outlines: Sequence[Outline]) -> Image.Image:
    """A copy of the image with outlines drawn first and labels over them, where they cover no other label."""
    panel = photograph.copy()
    canvas = ImageDraw.Draw(panel)
    for outline in outlines:
        _trace(canvas, outline)
    taken: list[tuple[float, ...]] = []
    for outline in outlines:
        plate = _plate(canvas, outline, panel.size, taken)
        taken.append(plate)
        canvas.rounded_rectangle(plate, 3, outline.colour)
        label = drawable(outline.label)
        canvas.text((plate[0] + 4, plate[1] + 1), label, "white", font_for(label, LABEL_SIZE))
    return panel


def _plate(
    canvas: ImageDraw.ImageDraw, outline: Outline, size: tuple[int, int], taken: Sequence[tuple[float, ...]]
) -> tuple[float, float, float, float]:
    """Where a label goes: above its outline, below it, or inside; the first place that is free, else the first."""
    label = drawable(outline.label)
    width, height = canvas.textlength(label, font_for(label, LABEL_SIZE)) + 8, LABEL_SIZE + 6
    xs, ys = zip(*outline.points, strict=True)
    left = min(max(0.0, min(xs)), max(0.0, size[0] - width - 1))
    tops = (min(ys) - height - 1, max(ys) + 2, min(ys) + 3, max(ys) - height - 3)
    places = [
        (left, top, left + width, top + height) for top in (min(max(0.0, top), size[1] - height - 1) for top in tops)
    ]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


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


def _points(bins: tuple[int, ...], kind: str, width: int, height: int) -> tuple[tuple[float, float], ...]:
    """Corners in px of a panel of this size."""
    flat = px_of_bins(bins, width - 1, height - 1)
    if kind == "bbox_2d":
        x1, y1, x2, y2 = flat
        return (x1, y1), (x2, y1), (x2, y2), (x1, y2)
    return tuple(zip(flat[::2], flat[1::2], strict=True))

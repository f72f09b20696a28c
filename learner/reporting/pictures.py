"""One answer as a picture: the ground truth on the left, what the model wrote on the right.

A matched pair bears the same number on both sides: the object's place in the ground truth, from 1.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw

from learner.data.images import read_image
from learner.detection.matching import Match
from learner.detection.prediction import Prediction
from learner.detection.record import Record
from learner.reporting.fonts.choice import drawable, font_for
from learner.reporting.outlines import LABEL_SIZE, Colour, Outline, points_of, resized, with_outlines
from shared.errors import DataError

LOG = logging.getLogger(__name__)

PANEL_PX = 480
"""The longer side of each panel; small images are enlarged to it, so that labels are legible."""
MARGIN_PX = 12
TITLE_PX = 26
CAPTION_PX = 30
TITLE_SIZE = 15
PAPER, INK, FADED = (250, 250, 247), (32, 33, 36), (110, 112, 118)

Verdict = Literal["matched", "misnamed", "missing", "appended", "extra"]
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


def try_to_draw(sample: PictureSample, file: Path) -> None:
    """Write a sample's picture; one whose image cannot be read any more is left out with a warning."""
    try:
        draw(sample).save(file)
    except DataError as error:
        LOG.warning("no picture: %s", error)


def draw(sample: PictureSample) -> Image.Image:
    """Draw a sample; reads the record's image. Raises DataError when that cannot be read."""
    _, opened = read_image(sample.record)
    photograph = resized(opened.image, PANEL_PX)
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
        points = points_of(item.bins, item.kind, width, height)
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
        points = points_of(item.bins, item.kind, width, height)
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

"""What a model sees in a picture, drawn over it: boxes and polygons, each with its name and score."""

from collections.abc import Sequence
from zlib import crc32

from PIL import Image

from learner.data.images import read_image
from learner.detection.prediction import Prediction
from learner.detection.record import Record
from learner.reporting.fonts.choice import drawable
from learner.reporting.outlines import Colour, Outline, points_of, resized, shortened, with_outlines

SHORTEST_PX, LONGEST_PX = 640, 1280
"""The longer side of a picture lies between them, so that labels are legible and outlines thin."""
COLOURS: tuple[Colour, ...] = (
    (31, 95, 165), (190, 60, 20), (20, 120, 80), (130, 50, 160), (150, 105, 0), (176, 40, 120),
    (0, 115, 130), (165, 35, 50), (80, 85, 95), (70, 105, 20), (75, 70, 190), (140, 80, 50),
)  # fmt: skip
"""Dark enough for white letters."""
LONGEST_NAME_PX = 240


def draw_detections(record: Record, predictions: Sequence[Prediction], scores: Sequence[float]) -> Image.Image:
    """The record's image with its predictions; a name has one colour in all pictures.

    The surest are labelled first; a label that finds no free place is left out, its outline is not. Raises DataError
    when the image cannot be read.
    """
    _, opened = read_image(record)
    image = opened.image
    photograph = resized(image, min(max(max(image.size), SHORTEST_PX), LONGEST_PX))
    surest_first = sorted(zip(scores, predictions, strict=True), key=lambda each: -each[0])
    outlines = [
        Outline(
            points=points_of(prediction.bins, prediction.kind, *photograph.size),
            label=f"{shortened(drawable(prediction.desc), LONGEST_NAME_PX)} {score:.2f}",
            colour=colour_of(prediction.desc),
        )
        for score, prediction in surest_first
    ]
    return with_outlines(photograph, outlines, labels_may_overlap=False)


def colour_of(desc: str) -> Colour:
    """The colour of a name."""
    return COLOURS[crc32(desc.encode()) % len(COLOURS)]

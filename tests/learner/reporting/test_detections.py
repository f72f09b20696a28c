"""Predictions over a picture: every outline is there, labels never lie over each other."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from learner.detection.prediction import Prediction
from learner.detection.record import Record
from learner.reporting.detections import COLOURS, LONGEST_PX, SHORTEST_PX, colour_of, draw_detections
from learner.reporting.fonts.choice import font_for
from learner.reporting.outlines import LABEL_SIZE, Outline, shortened, with_outlines

PLACE = (0, 1, 2, 3)


@pytest.fixture
def plates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """The places of all labels that are drawn."""
    drawn: list[tuple[float, ...]] = []
    draw = ImageDraw.ImageDraw.rounded_rectangle

    def noted(self: ImageDraw.ImageDraw, place: tuple[float, ...], *others: object) -> None:
        drawn.append(place)
        draw(self, place, *others)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", noted)
    return drawn


def record_of(folder: Path, size: tuple[int, int]) -> Record:
    Image.new("RGB", size, "white").save(folder / "image.png")
    return Record("picture:1", (str(folder / "image.png"),), *size, ())


@pytest.mark.parametrize(
    ("size", "longest"), [((64, 48), SHORTEST_PX), ((900, 300), 900), ((300, 5000), LONGEST_PX)], ids=str
)
def test_pictures_are_large_enough_to_read_and_small_enough_to_look_at(
    tmp_path: Path, size: tuple[int, int], longest: int
) -> None:
    assert max(draw_detections(record_of(tmp_path, size), (), ()).size) == longest


def test_a_hundred_boxes_at_one_place_have_few_labels_and_all_outlines(
    tmp_path: Path, plates: list[tuple[float, ...]]
) -> None:
    boxes = [(300 + each, 300 + each, 600 + each, 600 + each) for each in range(100)]
    predictions = [Prediction(1, f"thing {place}", "bbox_2d", box, PLACE) for place, box in enumerate(boxes)]
    picture = draw_detections(record_of(tmp_path, (640, 480)), predictions, [place / 100 for place in range(100)])
    assert 2 <= len(plates) < 30
    for a, b in combinations(plates, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    seen = {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3)}
    assert {colour_of(each.desc) for each in predictions} <= seen
    assert colour_of(predictions[0].desc) in COLOURS


def test_labels_lie_inside_however_long_names_are(tmp_path: Path, plates: list[tuple[float, ...]]) -> None:
    name = "a name that nobody would have expected to be as long as it is, and that goes on " * 3
    predictions = [
        Prediction(1, desc, "bbox_2d", (900, 0, 999, 90), PLACE) for desc in (name, "собака " * 30, "猫🐶" * 40)
    ]
    picture = draw_detections(record_of(tmp_path, (640, 480)), predictions, (0.5, 0.4, 0.3))
    assert len(plates) == 3
    for left, top, right, bottom in plates:
        assert 0 <= left < right <= picture.width
        assert 0 <= top < bottom <= picture.height


def test_a_label_is_cut_where_it_has_to_be() -> None:
    assert shortened("cat 0.50", 500) == "cat 0.50"
    cut = shortened("a cat that is longer than that", 80)
    assert cut.startswith("a cat")
    assert cut.endswith("...")
    assert font_for(cut, LABEL_SIZE).getlength(cut) <= 80
    assert shortened("cat", 1) == ""


def test_a_report_may_draw_labels_over_each_other(plates: list[tuple[float, ...]]) -> None:
    same = [Outline(((10, 10), (30, 10), (30, 20), (10, 20)), "cat", (0, 0, 0)) for _ in range(9)]
    with_outlines(Image.new("RGB", (60, 40)), same)
    assert len(plates) == 9

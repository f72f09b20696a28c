"""Pictures show every object of both sides in its verdict's colour, at its place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from learner.detection.matching import match_objects
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject, Record
from learner.reporting.fonts.choice import drawable, font_for
from learner.reporting.outlines import resized
from learner.reporting.pictures import (
    PANEL_PX,
    VERDICT_COLOURS,
    PictureSample,
    answer_outlines,
    caption,
    draw,
    truth_outlines,
)

CAT, DOG, HEN = (100, 100, 300, 300), (500, 500, 900, 900), (600, 50, 900, 200)


@pytest.fixture
def sample(tmp_path: Path) -> PictureSample:
    """Cat found, dog missed, hen missed and appended, one prediction too many."""
    path = tmp_path / "image.png"
    Image.new("RGB", (64, 48), (255, 255, 255)).save(path)
    objects = tuple(
        GroundTruthObject(desc, "bbox_2d", bins) for desc, bins in zip(("cat", "d", "h"), (CAT, DOG, HEN), strict=True)
    )
    predictions = (
        Prediction(1, "ghost", "bbox_2d", (10, 700, 90, 800), (0, 1, 2, 3)),
        Prediction(2, "cat", "bbox_2d", (100, 100, 300, 280), (4, 5, 6, 7)),
    )
    record = Record("val:7", (str(path),), 64, 48, objects)
    return PictureSample(record, predictions, match_objects(predictions, objects), appended=(2,))


def test_each_object_is_labelled_with_what_became_of_it(sample: PictureSample) -> None:
    truth = truth_outlines(sample, 400, 300)
    assert [(outline.label, outline.dashed) for outline in truth] == [
        ("1 cat", False),
        ("d · missing", True),
        ("h · appended", True),
    ]
    assert [outline.label for outline in answer_outlines(sample, 400, 300)] == ["ghost · extra", "1 cat · 0.90"]
    assert caption(sample) == (
        "val:7  ·  3 objects  ·  2 predicted  ·  1 matched  ·  mean IoU 0.90  ·  1 extra  ·  2 missing"
    )


def test_outlines_lie_where_the_bins_say(sample: PictureSample) -> None:
    (x1, y1), _, (x2, y2), _ = truth_outlines(sample, 1000, 500)[0].points
    assert (round(x1), round(y1), round(x2), round(y2)) == (100, 50, 300, 150)


def test_a_polygon_is_traced_by_its_corners(sample: PictureSample) -> None:
    polygon = GroundTruthObject("leaf", "poly", (0, 0, 999, 0, 500, 999))
    record = Record("val:7", sample.record.images, 64, 48, (polygon,))
    outline = truth_outlines(PictureSample(record, (), match_objects((), (polygon,))), 101, 51)[0]
    assert [(round(x), round(y)) for x, y in outline.points] == [(0, 0), (100, 0), (50, 50)]


def test_the_sheet_holds_both_panels_in_the_colours_of_the_verdicts(sample: PictureSample) -> None:
    pixels = np.asarray(draw(sample))
    left, right = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]

    def has(half: np.ndarray, verdict: str) -> bool:
        return bool((half == VERDICT_COLOURS[verdict]).all(axis=2).any())  # type: ignore[index]

    assert has(left, "matched")
    assert has(left, "missing")
    assert not has(left, "extra")
    assert has(right, "matched")
    assert has(right, "extra")
    assert not has(right, "missing")


@pytest.mark.reported("wrong names in green")
def test_a_right_place_under_another_name_is_not_drawn_as_right(sample: PictureSample) -> None:
    wrong = replace(sample, predictions=(sample.predictions[0], replace(sample.predictions[1], desc="dog")))
    _, outline = answer_outlines(wrong, 400, 300)
    assert (outline.label, outline.colour) == ("1 dog · 0.90 · not cat", VERDICT_COLOURS["misnamed"])


@pytest.mark.parametrize("size", [(16, 12), (4000, 1000), (3, 900)])
def test_panels_are_of_one_size_whatever_the_image(size: tuple[int, int]) -> None:
    assert max(resized(Image.new("RGB", size), PANEL_PX).size) == PANEL_PX


def test_an_empty_answer_to_an_empty_image_is_drawn(sample: PictureSample) -> None:
    record = Record("val:8", sample.record.images, 64, 48, ())
    assert draw(PictureSample(record, (), match_objects((), ()))).width > 2 * PANEL_PX


def inked(text: str) -> bytes:
    """The pixels of a label."""
    label = drawable(text)
    return bytes(font_for(label, 13).getmask(label))


@pytest.mark.reported("labels with ö, Chinese, Cyrillic")
@pytest.mark.parametrize("text", ["Hündin", "собака", "狗", "犬", "강아지", "कुत्ता", "café", "Ωμέγα"])
def test_letters_of_every_script_are_drawn(text: str) -> None:
    missing = bytes(font_for(text, 13).getmask("\uffff"))
    for letter in text:
        assert inked(letter) != missing, letter
    assert inked(text) != inked(text[::-1]) or len(text) == 1


def test_what_no_font_has_is_drawn_by_its_number() -> None:
    assert drawable("a 😀") == "a U+1F600"

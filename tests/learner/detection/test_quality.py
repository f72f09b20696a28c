"""Quality is counted per answer and adds up."""

import pytest

from learner.detection.matching import match_objects
from learner.detection.parsing import ParsedRollout, Prediction
from learner.detection.quality import Quality, count_duplicates, quality_of
from learner.detection.record import GroundTruthObject


def prediction(desc: str, *bins: int) -> Prediction:
    return Prediction(1, desc, "bbox_2d" if len(bins) == 4 else "poly", bins, tuple(range(len(bins))))


CAT = prediction("cat", 0, 0, 100, 100)
TRUTH = [
    GroundTruthObject("cat", "bbox_2d", (0, 0, 100, 80)),
    GroundTruthObject("dog", "bbox_2d", (500, 500, 600, 600)),
]


def test_an_answer_is_counted() -> None:
    parsed = ParsedRollout(predictions=(CAT, prediction("owl", 800, 800, 900, 900)), dropped=ParsedRollout().dropped)
    quality = quality_of(parsed, TRUTH, match_objects(parsed.predictions, TRUTH))
    assert (quality.num_predictions, quality.num_ground_truth, quality.num_matched) == (2, 2, 1)
    assert (quality.precision, quality.recall, quality.f1) == (0.5, 0.5, 0.5)
    assert quality.matched_iou == pytest.approx(0.8)
    assert quality.num_named == 1
    assert quality.predictions_per_ground_truth == 1.0
    assert (quality.num_with_predictions, quality.num_with_matches, quality.num_invalid) == (1, 1, 0)


def test_an_object_in_its_place_under_another_name_is_matched_and_not_named() -> None:
    parsed = ParsedRollout(predictions=(prediction("owl", 0, 0, 100, 100),))
    quality = quality_of(parsed, TRUTH, match_objects(parsed.predictions, TRUTH))
    assert (quality.num_matched, quality.num_named) == (1, 0)


def test_counts_of_answers_add_up() -> None:
    one = ParsedRollout(predictions=(CAT,))
    cut = ParsedRollout(truncated=True)
    total = sum(
        (quality_of(parsed, TRUTH, match_objects(parsed.predictions, TRUTH)) for parsed in (one, cut)), start=Quality()
    )
    assert (total.num_answers, total.num_invalid, total.num_truncated, total.num_ground_truth) == (2, 1, 1, 4)
    assert (total.precision, total.recall) == (1.0, 0.25)
    assert total.f1 == pytest.approx(0.4)


def test_an_empty_answer_is_legal() -> None:
    quality = quality_of(ParsedRollout(empty=True), [], match_objects([], []))
    assert (quality.num_empty, quality.num_invalid) == (1, 0)
    assert (quality.precision, quality.recall, quality.f1, quality.duplicate_rate) == (0.0, 0.0, 0.0, 0.0)


def test_a_duplicate_has_the_desc_and_place_of_an_earlier_prediction() -> None:
    near, far = prediction("cat", 0, 0, 100, 95), prediction("cat", 0, 0, 100, 89)
    dog = prediction("dog", 0, 0, 100, 100)
    assert count_duplicates([CAT, near, dog, CAT]) == 2
    assert count_duplicates([CAT, far, dog]) == 0
    assert count_duplicates([]) == 0


@pytest.mark.parametrize(
    ("parsed", "truth", "sound"),
    [
        (ParsedRollout(empty=True), [], 1),
        (ParsedRollout(empty=True), TRUTH, 0),
        (ParsedRollout(predictions=(CAT,)), [], 1),
        (ParsedRollout(truncated=True), [], 0),
        (ParsedRollout(malformed=True), [], 0),
    ],
)
@pytest.mark.reported("{} counted as no valid prediction")
def test_a_right_empty_answer_is_as_sound_as_one_with_objects(
    parsed: ParsedRollout, truth: list[GroundTruthObject], sound: int
) -> None:
    assert quality_of(parsed, truth, match_objects(parsed.predictions, truth)).num_sound == sound

"""Right objects, counted at ten thresholds, by place alone and by place and name."""

from learner.detection.agreement import IOU_THRESHOLDS, Agreement, agreement_by_desc, agreement_of
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject

RESOLUTION = 256


def prediction(desc: str, *bins: int) -> Prediction:
    return Prediction(1, desc, "bbox_2d" if len(bins) == 4 else "poly", bins, tuple(range(len(bins))))


def truth(desc: str, *bins: int) -> GroundTruthObject:
    return GroundTruthObject(desc, "bbox_2d" if len(bins) == 4 else "poly", bins)


def test_thresholds_are_cocos() -> None:
    assert IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_an_object_is_right_up_to_its_iou() -> None:
    """100 x 100 against 100 x 78: IoU 0.78, so right at 0.50 … 0.75."""
    counted = agreement_of([prediction("cat", 0, 0, 100, 78)], [truth("cat", 0, 0, 100, 100)], RESOLUTION)
    assert counted == Agreement(1, 1, (1, 1, 1, 1, 1, 1, 0, 0, 0, 0))


def test_every_ground_truth_is_a_candidate() -> None:
    """Seven predictions lie on one object and each of the seven near it; every one finds its own."""
    boxes = [(100 + shift, 100, 300 + shift, 300) for shift in range(0, 70, 10)]
    counted = agreement_of(
        [prediction("cat", 130, 100, 330, 300) for _ in boxes], [truth("cat", *box) for box in boxes], RESOLUTION
    )
    assert counted.num_matched[0] == 7


def test_names_are_asked_for_only_where_it_is_said() -> None:
    predictions = [prediction("cat", 0, 0, 100, 100), prediction("dog", 500, 500, 600, 600)]
    objects = [truth("dog", 0, 0, 100, 100), truth("dog", 500, 500, 600, 600)]
    assert agreement_of(predictions, objects, RESOLUTION).num_matched[0] == 2
    by_desc = agreement_by_desc(predictions, objects, RESOLUTION)
    assert {desc: each.num_matched[0] for desc, each in by_desc.items()} == {"dog": 1, "cat": 0}
    assert sum(by_desc.values(), Agreement()) == Agreement(2, 2, (1,) * 10)


def test_a_better_placed_stranger_does_not_take_a_names_place() -> None:
    """Both lie on the dog; only the one that says so counts."""
    predictions = [prediction("cat", 0, 0, 100, 100), prediction("dog", 0, 0, 100, 96)]
    by_desc = agreement_by_desc(predictions, [truth("dog", 0, 0, 100, 100)], RESOLUTION)
    assert by_desc["dog"].num_matched == (1,) * 10


def test_polygons_are_compared_by_mask() -> None:
    triangle = (0, 0, 400, 0, 0, 400)
    assert agreement_of([prediction("cat", *triangle)], [truth("cat", *triangle)], RESOLUTION).num_matched == (1,) * 10
    half = agreement_of([prediction("cat", 0, 0, 400, 400)], [truth("cat", *triangle)], RESOLUTION)
    assert sum(half.num_matched) <= 1, "a triangle is half of its box"

"""Right objects, counted at ten thresholds, by place alone and by place and name."""

from learner.detection.agreement import IOU_THRESHOLDS, Agreement, agreement_by_desc, agreement_of
from learner.detection.matching import MatchingConfig
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject

CONFIG = MatchingConfig()


def prediction(desc: str, *bins: int) -> Prediction:
    return Prediction(1, desc, "bbox_2d" if len(bins) == 4 else "poly", bins, tuple(range(len(bins))))


def truth(desc: str, *bins: int) -> GroundTruthObject:
    return GroundTruthObject(desc, "bbox_2d" if len(bins) == 4 else "poly", bins)


def test_thresholds_are_cocos() -> None:
    assert IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_an_object_is_right_up_to_its_iou() -> None:
    """100 x 100 against 100 x 78: IoU 0.78, so right at 0.50 … 0.75."""
    counted = agreement_of([prediction("cat", 0, 0, 100, 78)], [truth("cat", 0, 0, 100, 100)], CONFIG)
    assert counted == Agreement(1, 1, (1, 1, 1, 1, 1, 1, 0, 0, 0, 0))


def test_the_gate_of_training_plays_no_part() -> None:
    pair = [prediction("cat", 0, 0, 100, 60)], [truth("cat", 0, 0, 100, 100)]
    assert agreement_of(*pair, MatchingConfig(maskiou_gate=0.9)) == agreement_of(*pair, CONFIG)


def test_names_are_asked_for_only_where_it_is_said() -> None:
    predictions = [prediction("cat", 0, 0, 100, 100), prediction("dog", 500, 500, 600, 600)]
    objects = [truth("dog", 0, 0, 100, 100), truth("dog", 500, 500, 600, 600)]
    assert agreement_of(predictions, objects, CONFIG).num_matched[0] == 2
    by_desc = agreement_by_desc(predictions, objects, CONFIG)
    assert {desc: each.num_matched[0] for desc, each in by_desc.items()} == {"dog": 1, "cat": 0}
    assert sum(by_desc.values(), Agreement()) == Agreement(2, 2, (1,) * 10)


def test_a_better_placed_stranger_does_not_take_a_names_place() -> None:
    """Both lie on the dog; only the one that says so counts."""
    predictions = [prediction("cat", 0, 0, 100, 100), prediction("dog", 0, 0, 100, 96)]
    by_desc = agreement_by_desc(predictions, [truth("dog", 0, 0, 100, 100)], CONFIG)
    assert by_desc["dog"].num_matched == (1,) * 10


def test_polygons_are_compared_by_mask() -> None:
    triangle = (0, 0, 400, 0, 0, 400)
    assert agreement_of([prediction("cat", *triangle)], [truth("cat", *triangle)], CONFIG).num_matched == (1,) * 10
    half = agreement_of([prediction("cat", 0, 0, 400, 400)], [truth("cat", *triangle)], CONFIG)
    assert sum(half.num_matched) <= 1, "a triangle is half of its box"

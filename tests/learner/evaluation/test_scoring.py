"""Answers added one by one become the scores of an evaluation."""

import pytest

from learner.detection.matching import MatchingConfig
from learner.detection.parsing import ParsedRollout
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject, Record
from learner.evaluation.scoring import Scores, Scoring
from shared.metrics import EVALUATION_COUNTS, EVALUATION_SCORES

LEFT, RIGHT = (0, 0, 400, 400), (500, 500, 900, 900)
ROUGH_LEFT = (0, 0, 400, 288)  # IoU 0.72 with LEFT: right at 0.50 … 0.70


def record(name: str, *objects: tuple[str, tuple[int, ...]]) -> Record:
    return Record(name, ("i.png",), 100, 100, tuple(GroundTruthObject(desc, "bbox_2d", bins) for desc, bins in objects))


def answer(*objects: tuple[str, tuple[int, ...]]) -> ParsedRollout:
    return ParsedRollout(tuple(Prediction(1, desc, "bbox_2d", bins, (0, 1, 2, 3)) for desc, bins in objects))


@pytest.fixture
def scores() -> Scores:
    scoring = Scoring(MatchingConfig())
    scoring.add(record("v:2", ("cat", LEFT), ("dog", RIGHT)), answer(("cat", ROUGH_LEFT), ("cat", RIGHT)), (0.9, 0.8))
    scoring.add(record("v:1", ("cat", LEFT)), answer(("cat", LEFT)), (0.7,))
    scoring.lose(record("v:3", ("dog", RIGHT)))
    return scoring.scores(step=7)


def test_f1_is_told_by_place_and_by_name_at_one_threshold_and_over_all(scores: Scores) -> None:
    metrics, objects = scores.metrics, 3 + 4
    assert metrics["eval_rollout_f1_iou50"] == pytest.approx(2 * 3 / objects)
    assert metrics["eval_rollout_f1_iou50_95"] == pytest.approx(2 * (2 + 0.5) / objects)
    assert metrics["eval_rollout_f1_desc_iou50"] == pytest.approx(2 * 2 / objects)
    assert metrics["eval_rollout_f1_desc_iou50_95"] == pytest.approx(2 * (1 + 0.5) / objects)
    assert metrics["eval_rollout_precision_iou50"] == 1
    assert metrics["eval_rollout_recall_iou50"] == 3 / 4


def test_how_training_matches_changes_no_score_that_names_its_threshold() -> None:
    """An IoU of 0.58 is right at 0.50 and 0.55; both predictions overlap both objects, and each finds one."""
    twins = [(0, 0, 400, 400), (100, 0, 500, 400)]
    of_training = MatchingConfig(candidate_top_k=1, maskiou_gate=0.9, fp_cost=0.2, fn_cost=0.2)
    metrics = []
    for matching in (MatchingConfig(), of_training):
        scoring = Scoring(matching)
        scoring.add(record("v:1", ("cat", LEFT)), answer(("cat", (0, 0, 400, 232))), (0.9,))
        scoring.add(record("v:2", *(("cat", twin) for twin in twins)), answer(("cat", LEFT), ("cat", LEFT)), (0.9, 0.8))
        metrics.append({name: value for name, value in scoring.scores(0).metrics.items() if "iou50" in name})
    assert metrics[0] == metrics[1]
    assert metrics[1]["eval_rollout_f1_iou50"] == 1
    assert metrics[1]["eval_rollout_f1_iou50_95"] == pytest.approx(2 * (0.2 * 1 + (0.3 * 2 + 0.7 * 1)) / 6)


def test_a_record_without_an_answer_is_counted_as_an_empty_one(scores: Scores) -> None:
    assert (scores.step, scores.num_images) == (7, 3)
    assert scores.metrics["eval_rollout_lost"] == 1
    assert scores.metrics["eval_rollout_fn"] == 1
    assert scores.metrics["eval_rollout_sample_valid_pred_rate"] == pytest.approx(2 / 3)


def test_each_desc_of_the_ground_truth_has_its_own_line(scores: Scores) -> None:
    assert [each.desc for each in scores.classes] == ["cat", "dog"]
    cat, dog = scores.classes
    assert (cat.agreement.num_ground_truth, cat.agreement.num_predictions, cat.agreement.num_matched[0]) == (2, 3, 2)
    assert (dog.agreement.num_ground_truth, dog.agreement.num_predictions, dog.agreement.num_matched[0]) == (2, 0, 0)


def test_the_catalogue_holds_every_score(scores: Scores) -> None:
    catalogue = {metric.name for metric in EVALUATION_SCORES + EVALUATION_COUNTS}
    assert scores.metrics.keys() <= catalogue
    assert {name for name in catalogue - scores.metrics.keys() if "_coco_" not in name} == set()


def test_cocos_numbers_are_there_overall_by_desc_and_without_desc(scores: Scores) -> None:
    """Cats: of two, both found at IoU 0.50 … 0.70, one above; the false alarm is in between. Dogs: none is found."""
    cat, dog = scores.classes
    assert cat.precision is not None
    assert dog.precision is not None
    assert dog.precision.ap == 0
    assert 0.5 < cat.precision.ap < cat.precision.ap50 < 1
    assert scores.metrics["eval_coco_ap"] == pytest.approx((cat.precision.ap + dog.precision.ap) / 2)
    assert scores.metrics["eval_coco_agnostic_ap50"] == pytest.approx(76 / 101), "3 of 4 found, none wrong"
    assert "eval_coco_ap_large" not in scores.metrics

"""The best point among all that one decode holds, against an evaluation of each."""

import numpy as np
import pytest

from learner.detection.matching import MatchingConfig
from learner.detection.operating_point import OperatingPoint, num_before_stop
from learner.detection.parsing import ParsedRollout
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject, Record
from learner.evaluation.answers import ScoredAnswer
from learner.evaluation.calibration import BIASES, GOALS, Tried, best_of, calibrate, thresholds_of
from learner.evaluation.scoring import Scoring
from learner.evaluation.tables import reading_of

RESOLUTION = 256
DESCS = ("cat", "dog")


def made_up(seed: int, num_answers: int, annotated: float = 1.0) -> list[ScoredAnswer]:
    """Answers of nine objects, each later one less likely to be there, at scores that say little of it.

    The stop gets likelier with each object; annotators name each object with the probability `annotated`.
    """
    random = np.random.default_rng(seed)
    answers = []
    for number in range(num_answers):
        corners = [(x, y) for x in (0, 330, 660) for y in (0, 330, 660)]
        true = [GroundTruthObject(str(random.choice(DESCS)), "bbox_2d", (x, y, x + 200, y + 200)) for x, y in corners]
        predictions, margins = [], [(1, -5.0)]
        for place in range(9):
            is_there = random.random() < 1 - place / 9
            x, y = corners[place] if is_there else (corners[place][0] + 160, corners[place][1] + 160)
            shift, start = int(random.integers(0, 90)), 4 + 20 * place
            bins = (x, y, x + 200 + shift, y + 200)
            positions = (start, start + 2, start + 4, start + 6)
            predictions.append(Prediction(place + 1, str(random.choice(DESCS)), "bbox_2d", bins, positions))
            margins.append((start + 8, float(place - 6 + random.normal())))
        kept = tuple(each for each in true if random.random() < annotated)
        record = Record(f"v:{number}", ("i.png",), 1000, 1000, kept)
        scores = tuple(float(0.9 - place / 30 - 0.3 * random.random()) for place in range(9))
        answers.append(ScoredAnswer(record, ParsedRollout(tuple(predictions)), scores, tuple(margins)))
    return answers


@pytest.mark.parametrize("metric", GOALS)
def test_values_are_those_of_an_evaluation_at_the_point(metric: str) -> None:
    answers = made_up(0, 12)
    found = calibrate(answers, metric, 1.0, RESOLUTION)
    assert [each.point.stop_bias for each in found.tried] == list(BIASES)
    for tried in (found.plain, found.best, *found.tried[::4]):
        scoring = Scoring(MatchingConfig(maskiou_resolution=RESOLUTION))
        for answer in answers:
            count = num_before_stop(answer.parsed.predictions, answer.stop_margins, tried.point.stop_bias)
            cut = ParsedRollout(answer.parsed.predictions[:count])
            parsed, scores = tried.point.filter(cut, answer.scores[:count])
            scoring.add(answer.record, parsed, scores)
        assert tried.value == pytest.approx(scoring.scores(0).metrics[metric])
    assert found.best.value == max(each.value for each in found.tried) > found.plain.value
    assert found.plain.point == OperatingPoint()


def test_what_annotators_leave_out_at_random_is_given_back() -> None:
    """Chosen by .4 of the annotations and told so, it is what whole ones choose; untold it says less."""
    whole = calibrate(made_up(1, 1000), "eval_rollout_f1_iou50", 1.0, RESOLUTION)
    told = calibrate(made_up(1, 1000, annotated=0.4), "eval_rollout_f1_iou50", 0.4, RESOLUTION)
    untold = calibrate(made_up(1, 1000, annotated=0.4), "eval_rollout_f1_iou50", 1.0, RESOLUTION)
    assert told.best.value == pytest.approx(whole.best.value, abs=0.02)
    assert told.best.point.stop_bias == pytest.approx(whole.best.point.stop_bias, abs=0.5)
    named = {each: 0.4 * each.best.predictions_per_object for each in (told, untold)}  # of the objects that are there
    assert named[told] == pytest.approx(whole.best.predictions_per_object, abs=0.03)
    assert named[untold] < whole.best.predictions_per_object - 0.05


def test_the_surest_objects_tell_how_complete_annotations_are() -> None:
    for annotated in (1.0, 0.4):
        found = calibrate(made_up(2, 400, annotated), "eval_rollout_f1_iou50", 1.0, RESOLUTION)
        assert annotated - 0.1 < found.surest < annotated + 0.03
        assert any(line.startswith("warning: either") for line in reading_of(found)) == (annotated < 1)
    unlikely = calibrate(made_up(2, 400), "eval_rollout_f1_iou50", 0.4, RESOLUTION)
    assert any("which cannot be" in line for line in reading_of(unlikely))
    few = calibrate(made_up(2, 2), "eval_rollout_f1_iou50", 1.0, RESOLUTION)
    assert few.surest is None
    assert any("too few to tell" in line for line in reading_of(few))


def test_the_least_change_wins_among_equals() -> None:
    def tried(bias: float, threshold: float) -> Tried:
        return Tried(OperatingPoint(bias, threshold), 0.5, 1.0, 1.0, 1.0)

    assert best_of([tried(-1.0, 0.0), tried(0.5, 0.2), tried(0.5, 0.1), tried(2.0, 0.0)]) == tried(0.5, 0.1)


def test_a_model_that_names_nothing_has_one_threshold_and_no_value() -> None:
    silent = [ScoredAnswer(each.record, ParsedRollout(empty=True), (), ((1, 9.0),)) for each in made_up(3, 3)]
    assert thresholds_of(silent) == [0.0]
    found = calibrate(silent, "eval_rollout_f1_iou50", 1.0, RESOLUTION)
    assert (found.best.value, found.best.point) == (0.0, OperatingPoint())

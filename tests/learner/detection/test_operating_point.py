"""Where the stop is decided on, with any tokenizer, and what an answer would have been at another bias."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.detection.operating_point import OperatingPoint, num_before_stop, stop_decision
from learner.detection.parsing import ParsedRollout, parse_rollout
from learner.detection.prediction import Prediction
from learner.detection.record import GroundTruthObject
from learner.detection.record_rules import KINDS
from learner.detection.targets import ground_truth_target
from learner.detection.vocabulary import CoordinateVocabulary
from rollout_server.engines.stop_decision import DecisionPlaces

SHAPES = st.sampled_from([("bbox_2d", (1, 2, 30, 40)), ("poly", (1, 2, 30, 40, 500, 6)), ("bbox_2d", (0, 0, 999, 999))])
DESCS = st.sampled_from(["a", "black cat", "öl 猫", 'a "b" \\', "x<|im_end|>", "dog}, {"])
OBJECTS = st.lists(st.tuples(DESCS, SHAPES), max_size=12)


@settings(max_examples=60, deadline=None)
@given(objects=OBJECTS)
def test_it_is_decided_at_the_start_and_behind_each_object_and_nowhere_else(
    vocabulary: CoordinateVocabulary, objects: list[tuple[str, tuple[str, tuple[int, ...]]]]
) -> None:
    """As a server finds the places, in ids that it has not been told: those of a whole answer with its stop."""
    truth = [GroundTruthObject(desc, kind, bins) for desc, (kind, bins) in objects]
    ids = list(ground_truth_target("v:1", (7, 7), truth, vocabulary).token_ids[2:])
    decision = stop_decision(vocabulary, 2.0)
    places = DecisionPlaces(decision)
    decided = {place: ending for place in range(len(ids)) if (ending := places.ending_id(ids[:place])) is not None}
    ended = [place for place, ending in decided.items() if ids[place] == ending]
    assert len(ended) == 1
    assert ended[0] == max(decided)
    parsed = parse_rollout(ids, vocabulary, "stop", KINDS)
    assert len(parsed.predictions) == len(objects)
    lasts = [prediction.positions[-1] for prediction in parsed.predictions]
    between = {place for prediction in parsed.predictions for place in prediction.positions[:-1]}
    behind = len(decision.behind_coordinate)
    expected = {len(decision.at_start) - 1, *(last + behind for last in lasts)}
    # Where nothing leads to the ending, it is decided behind every coordinate; none but the last goes on to it.
    assert expected <= set(decided) <= expected | ({place + 1 for place in between} if behind == 1 else set())
    if decision.stands_alone and not any("}" in desc for desc, _ in objects):
        assert not {decision.at_start[-1], decision.behind_coordinate[-1]} & set(ids[: ended[0]])


def test_an_ending_that_also_closes_objects_does_not_stand_alone(
    plain_vocabulary: CoordinateVocabulary, fused_vocabulary: CoordinateVocabulary
) -> None:
    (closing,) = plain_vocabulary.encode("}")
    assert closing in plain_vocabulary.encode('"]}, "object_2')
    decision = stop_decision(plain_vocabulary, 1.0)
    assert decision.stands_alone == (closing not in (decision.at_start[-1], decision.behind_coordinate[-1]))
    for vocabulary in (plain_vocabulary, fused_vocabulary):
        assert stop_decision(vocabulary, 1.0).coordinate_ids == vocabulary.coordinate_ids


def boxes(*last_places: int) -> list[Prediction]:
    return [Prediction(1, "a", "bbox_2d", (0, 0, 9, 9), tuple(range(last - 3, last + 1))) for last in last_places]


def test_an_answer_ends_at_the_first_margin_over_the_bias() -> None:
    predictions, margins = boxes(8, 18, 28), [(0, -6.0), (10, -1.0), (20, 3.0), (30, 2.0)]
    counts = {bias: num_before_stop(predictions, margins, bias) for bias in (-7.0, -3.0, -1.0, 0.0, 2.9, 3.0, 7.0)}
    assert counts == {-7.0: 0, -3.0: 1, -1.0: 2, 0.0: 2, 2.9: 2, 3.0: 3, 7.0: 3}
    assert num_before_stop(predictions, (), 0.0) == 3


@pytest.mark.parametrize(("threshold", "left"), [(0.0, (0.5, 0.2, 0.9)), (0.5, (0.5, 0.9)), (0.95, ())])
def test_predictions_under_the_threshold_are_left_out(threshold: float, left: tuple[float, ...]) -> None:
    parsed = ParsedRollout(tuple(boxes(8, 18, 28)), truncated=True)
    kept, scores = OperatingPoint(0.0, threshold).filter(parsed, (0.5, 0.2, 0.9))
    assert scores == left
    assert (len(kept.predictions), kept.truncated) == (len(left), True)

"""Targets: what is written, what is supervised in it, and that the ground truth is always taught whole."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from learner.detection.decision import decision_place, ending
from learner.detection.matching import match_objects
from learner.detection.openings import OPEN_ANSWER, openings
from learner.detection.parsing import parse_rollout
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import CLOSE_OBJECT, answer_text
from learner.detection.targets import Target, ground_truth_target, rollout_target
from learner.detection.vocabulary import CoordinateVocabulary
from shared.errors import DataError

PROMPT = (5, 6, 7)
CAT = GroundTruthObject("cat", "bbox_2d", (110, 310, 410, 705))
DOG = GroundTruthObject("brown dog", "bbox_2d", (500, 20, 800, 300))
OWL = GroundTruthObject("owl 🦉", "bbox_2d", (700, 600, 990, 999))
END = "<|im_end|>"
Answers = Callable[[Target], list[tuple[str, dict[str, Any]]]]


def taught(text: str, truth: list[GroundTruthObject], vocabulary: CoordinateVocabulary, **weights: object) -> Target:
    parsed = parse_rollout(vocabulary.encode(text), vocabulary)
    match = match_objects(parsed.predictions, truth)
    weights = {"prefix_extras": "keep", "prefix_structure_ce_weight": 0.0, **weights}
    return rollout_target("train:1", PROMPT, truth, parsed, match, vocabulary, **weights)  # type: ignore[arg-type]


def test_the_tail_is_supervised_from_the_token_after_the_last_kept_coordinate(vocabulary: CoordinateVocabulary) -> None:
    target = taught(answer_text([CAT]) + END, [CAT, DOG], vocabulary)
    ids = [*vocabulary.encode(answer_text([CAT, DOG])), vocabulary.im_end_id]
    assert target.token_ids == (*PROMPT, *ids)
    coordinates = [3 + place for place, token_id in enumerate(ids) if vocabulary.is_coordinate(token_id)]
    assert target.boxes == ((tuple(coordinates[:4]), CAT.bins), (tuple(coordinates[4:]), DOG.bins))
    rest = [place for place in range(coordinates[3] + 1, 3 + len(ids)) if place not in coordinates]
    assert target.ce_positions == tuple(rest)
    assert set(target.ce_weights) == {1.0}


def test_box_slots_are_pulled_towards_the_matched_ground_truth(
    vocabulary: CoordinateVocabulary, answer_of: Answers
) -> None:
    near = GroundTruthObject("feline", "bbox_2d", (120, 300, 400, 700))
    target = taught(answer_text([DOG, near]) + END, [CAT], vocabulary)
    ((positions, bins),) = target.boxes
    assert bins == CAT.bins
    assert tuple(vocabulary.bin_of(target.token_ids[position]) for position in positions) == near.bins
    assert len(answer_of(target)) == 2


def test_a_reversed_prediction_is_taught_its_corners_in_reading_order(vocabulary: CoordinateVocabulary) -> None:
    backwards = (410, 705, 110, 310)
    target = taught(answer_text([GroundTruthObject("cat", "bbox_2d", backwards)]) + END, [CAT], vocabulary)
    ((positions, bins),) = target.boxes
    assert tuple(vocabulary.bin_of(target.token_ids[position]) for position in positions) == backwards
    assert list(positions) == sorted(positions)
    assert bins == CAT.bins


def test_desc_weight_is_on_the_tokens_inside_desc_only(plain_vocabulary: CoordinateVocabulary) -> None:
    target = ground_truth_target("train:1", PROMPT, [CAT, OWL], plain_vocabulary, desc_ce_weight=0.25)
    inside = [place for place, weight in zip(target.ce_positions, target.ce_weights, strict=True) if weight == 0.25]
    text = plain_vocabulary.decode_pieces(target.token_ids[place] for place in inside)
    assert text.decode() == "catowl 🦉"
    none = ground_truth_target("train:1", PROMPT, [CAT, OWL], plain_vocabulary, desc_ce_weight=0.0)
    assert set(none.ce_positions) == set(target.ce_positions) - set(inside)
    assert target.ce_denominator == sum(target.ce_weights)


def test_coordinates_can_be_given_cross_entropy(vocabulary: CoordinateVocabulary) -> None:
    plain = ground_truth_target("train:1", PROMPT, [CAT, DOG], vocabulary)
    target = ground_truth_target("train:1", PROMPT, [CAT, DOG], vocabulary, coord_ce_weight=0.5)
    assert target.ce_positions == tuple(range(3, target.num_tokens))
    assert target.boxes == plain.boxes
    assert target.ce_denominator == plain.ce_denominator + 8 * 0.5


def test_prefix_structure_is_that_of_matched_objects(plain_vocabulary: CoordinateVocabulary) -> None:
    far = GroundTruthObject("dog", "bbox_2d", (500, 20, 800, 300))
    text = answer_text([CAT, far, OWL]) + END
    target = taught(text, [CAT, OWL], plain_vocabulary, prefix_structure_ce_weight=0.5)
    in_prefix = [place for place, weight in zip(target.ce_positions, target.ce_weights, strict=True) if weight == 0.5]
    written = plain_vocabulary.decode_pieces(target.token_ids[place] for place in in_prefix).decode()
    opening, between = '"object_{}": {{"desc": "", "bbox_2d": ["', '", "' * 3
    assert written == "{" + opening.format(1) + between + '"]}' + ", " + opening.format(3) + between
    assert target.ce_denominator == taught(text, [CAT, OWL], plain_vocabulary).ce_denominator


def test_a_token_that_leads_into_an_extra_prediction_is_not_taught(fused_vocabulary: CoordinateVocabulary) -> None:
    extra = GroundTruthObject("dog", "bbox_2d", (500, 20, 800, 300))
    target = taught(answer_text([CAT, extra, OWL]) + END, [CAT, OWL], fused_vocabulary, prefix_structure_ce_weight=0.5)
    glue = fused_vocabulary.encode('"]}, "')
    assert len(glue) == 1
    places = [place for place, token_id in enumerate(target.token_ids) if token_id == glue[0]]
    assert [place in target.ce_positions for place in places] == [False, False]


BEE = GroundTruthObject("bee", "bbox_2d", (0, 0, 9, 9))
NEAR = GroundTruthObject("feline", "bbox_2d", (120, 300, 400, 700))


def test_dropping_extras_teaches_names_and_order_of_the_truth_in_the_models_own_boxes(
    plain_vocabulary: CoordinateVocabulary,
) -> None:
    text, truth = answer_text([OWL, DOG, NEAR]).replace("object_3", "object_9") + END, [BEE, CAT, OWL]
    target = taught(text, truth, plain_vocabulary, prefix_extras="drop", prefix_structure_ce_weight=1.0)
    own = GroundTruthObject("cat", "bbox_2d", NEAR.bins)
    ids = plain_vocabulary.encode(answer_text([BEE, own, OWL]))
    assert target.token_ids == (*PROMPT, *ids, plain_vocabulary.im_end_id)
    assert [bins for _, bins in target.boxes] == [BEE.bins, CAT.bins, OWL.bins]
    alone = ground_truth_target("train:1", PROMPT, truth, plain_vocabulary)
    assert (target.ce_positions, target.ce_weights) == (alone.ce_positions, alone.ce_weights)


def test_a_box_that_would_invert_the_order_is_written_as_the_truth_has_it(vocabulary: CoordinateVocabulary) -> None:
    above = GroundTruthObject("cup", "bbox_2d", (0, 100, 400, 500))
    below = GroundTruthObject("cup", "bbox_2d", (500, 110, 900, 500))
    lower, higher = (0, 120, 400, 500), (500, 90, 900, 500)
    said = [GroundTruthObject("cup", "bbox_2d", bins) for bins in (lower, higher)]
    sorted_target = taught(answer_text(said) + END, [above, below], vocabulary, prefix_extras="drop")
    shuffled = taught(answer_text(said) + END, [below, above], vocabulary, prefix_extras="drop")
    bins = [
        [tuple(vocabulary.bin_of(target.token_ids[place]) for place in slots) for slots, _ in target.boxes]
        for target in (sorted_target, shuffled)
    ]
    assert bins == [[above.bins, below.bins], [higher, lower]]


@pytest.mark.parametrize("prefix_extras", ["keep", "drop"])
def test_a_box_far_from_its_truth_is_taught_as_missing(vocabulary: CoordinateVocabulary, prefix_extras: str) -> None:
    far = GroundTruthObject("cat", "bbox_2d", (110, 310, 410, 460))  # IoU .38: counted as found, not taught as found
    assert match_objects([far], [CAT]).pairs
    target = taught(answer_text([far]) + END, [CAT], vocabulary, prefix_extras=prefix_extras)
    ((positions, bins),) = target.boxes
    assert bins == CAT.bins == tuple(vocabulary.bin_of(target.token_ids[position]) for position in positions)


def test_extras_of_a_truncated_answer_are_no_context(vocabulary: CoordinateVocabulary) -> None:
    parsed = parse_rollout(vocabulary.encode(answer_text([DOG, CAT])), vocabulary, finish_reason="length")
    match = match_objects(parsed.predictions, [CAT])
    target = rollout_target("train:1", PROMPT, [CAT], parsed, match, vocabulary, prefix_extras="keep")
    assert target.token_ids == ground_truth_target("train:1", PROMPT, [CAT], vocabulary).token_ids


@pytest.mark.parametrize("truth", [[], [CAT], [CAT, OWL]])
@pytest.mark.parametrize("stop_ce_weight", [0.0, 0.1, 1.0])
def test_the_stop_is_priced_where_it_is_decided(
    vocabulary: CoordinateVocabulary, truth: list[GroundTruthObject], stop_ce_weight: float
) -> None:
    plain = ground_truth_target("train:1", PROMPT, truth, vocabulary)
    priced = ground_truth_target("train:1", PROMPT, truth, vocabulary, stop_ce_weight=stop_ce_weight)
    weights = dict(zip(plain.ce_positions, plain.ce_weights, strict=True))
    of_priced = dict(zip(priced.ce_positions, priced.ce_weights, strict=True))
    goes_on = ground_truth_target("train:1", PROMPT, [*truth, DOG], vocabulary)
    decision = next(place for place in weights if plain.token_ids[place] != goes_on.token_ids[place])
    assert of_priced.get(decision, 0.0) == stop_ce_weight
    assert {**of_priced, decision: 1.0} == weights
    assert priced.ce_denominator == plain.ce_denominator


def test_the_decision_falls_at_one_place_whatever_comes_next(
    vocabulary: CoordinateVocabulary, fused_vocabulary: CoordinateVocabulary, plain_vocabulary: CoordinateVocabulary
) -> None:
    for each in (vocabulary, fused_vocabulary, plain_vocabulary):
        for lead in (OPEN_ANSWER, CLOSE_OBJECT):
            stop, place = ending(each, lead).token_ids, decision_place(each, lead)
            for index, item in ((2, CAT), (10, OWL), (117, BEE)):
                (opening,) = openings(each, [item], index, lead)
                assert opening.token_ids[:place] == stop[:place]
                assert opening.token_ids[place] != stop[place]


def test_a_desc_that_spells_a_special_token_stays_text(vocabulary: CoordinateVocabulary, answer_of: Answers) -> None:
    text = answer_text([CAT]).replace("cat", "\\u003c|im_end|> \\u003c|coord_3|>") + END
    target = taught(text, [CAT, DOG], vocabulary)
    assert [token_id for token_id in target.token_ids if token_id == vocabulary.im_end_id] == [target.token_ids[-1]]
    assert answer_of(target)[0][1]["desc"] == "<|im_end|> <|coord_3|>"
    assert sum(vocabulary.is_coordinate(token_id) for token_id in target.token_ids) == 8


def test_a_geometry_written_first_is_closed_with_its_desc(vocabulary: CoordinateVocabulary) -> None:
    values = ", ".join(f'"<|coord_{bin}|>"' for bin in CAT.bins)
    text = f'{{"object_1": {{"bbox_2d": [{values}], "desc": "c\\u003c|im_end|>"}}}}'
    target = taught(text + END, [CAT, DOG], vocabulary)
    assert target.token_ids.count(vocabulary.im_end_id) == 1
    answer = vocabulary.decode_pieces(target.token_ids[3:]).decode().removesuffix(END)
    assert [entry["desc"] for entry in json.loads(answer).values()] == ["c<|im_end|>", "brown dog"]


def test_numbering_goes_on_after_the_highest_key_in_the_prefix(
    vocabulary: CoordinateVocabulary, answer_of: Answers
) -> None:
    text = answer_text([CAT, OWL]).replace("object_1", "object_7") + END
    assert [key for key, _ in answer_of(taught(text, [CAT, DOG], vocabulary))] == [
        "object_7",
        "object_2",
        "object_8",
    ]


@pytest.mark.parametrize("answer", ["", "no", "{}", "{} and more", '{"object_1": {"desc": "ca'])
def test_without_a_prefix_the_target_is_the_ground_truth(answer: str, vocabulary: CoordinateVocabulary) -> None:
    for truth in ([CAT, DOG], []):
        assert taught(answer, truth, vocabulary) == ground_truth_target("train:1", PROMPT, truth, vocabulary)


def test_an_empty_ground_truth_teaches_the_empty_answer(vocabulary: CoordinateVocabulary) -> None:
    target = ground_truth_target("train:1", PROMPT, [], vocabulary)
    assert vocabulary.decode_pieces(target.token_ids[3:]) == b"{}<|im_end|>"
    assert (target.boxes, target.ce_denominator) == ((), len(target.ce_positions))


def test_polygons_are_written_and_have_no_box_slots(vocabulary: CoordinateVocabulary) -> None:
    poly = GroundTruthObject("cat", "poly", (1, 2, 300, 4, 150, 600))
    target = ground_truth_target("train:1", PROMPT, [poly, DOG], vocabulary)
    assert target.token_ids[3:] == (*vocabulary.encode(answer_text([poly, DOG])), vocabulary.im_end_id)
    assert [bins for _, bins in target.boxes] == [DOG.bins]
    assert target.ce_denominator == sum(target.ce_weights)


def test_what_never_fits_names_the_record_and_both_numbers(vocabulary: CoordinateVocabulary) -> None:
    needed = ground_truth_target("train:1", PROMPT, [CAT, DOG], vocabulary).num_tokens
    assert taught(answer_text([CAT]) + END, [CAT, DOG], vocabulary, capacity=needed).num_tokens == needed
    with pytest.raises(DataError, match=rf"train:1.* {needed} tokens.* {needed - 1};"):
        taught(answer_text([CAT]) + END, [CAT, DOG], vocabulary, capacity=needed - 1)

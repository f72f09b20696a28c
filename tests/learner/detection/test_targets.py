"""Targets: what is written, what is supervised in it, and that the ground truth is always taught whole."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.detection.matching import Match, match_objects
from learner.detection.parsing import ParsedRollout, parse_rollout
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text
from learner.detection.targets import Target, TargetWeights, ground_truth_target, rollout_target
from learner.detection.vocabulary import CoordinateVocabulary
from shared.errors import DataError

PROMPT = (5, 6, 7)
CAT = GroundTruthObject("cat", "bbox_2d", (110, 310, 410, 705))
DOG = GroundTruthObject("brown dog", "bbox_2d", (500, 20, 800, 300))
OWL = GroundTruthObject("owl 🦉", "bbox_2d", (700, 600, 990, 999))
END = "<|im_end|>"

corner = st.integers(0, 998)
boxes = st.tuples(corner, corner, st.integers(1, 400), st.integers(1, 400)).map(
    lambda box: (box[0], box[1], min(box[0] + box[2], 999), min(box[1] + box[3], 999))
)
descs = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=8).filter(str.strip)
objects = st.lists(st.builds(GroundTruthObject, descs, st.just("bbox_2d"), boxes), max_size=5)


def answer_of(target: Target, vocabulary: CoordinateVocabulary) -> list[tuple[str, dict[str, object]]]:
    """The answer of a target as key/value pairs, duplicates kept."""
    text = vocabulary.decode_pieces(target.token_ids[target.num_prompt_tokens :]).decode()
    assert text.endswith("}" + END)
    entries: list[tuple[str, dict[str, object]]] = json.loads(
        text.removesuffix(END),
        object_pairs_hook=lambda pairs: pairs if pairs and pairs[0][0] != "desc" else dict(pairs),
    )
    return list(entries)


def shown(item: GroundTruthObject) -> dict[str, object]:
    return {"desc": item.desc, item.kind: [f"<|coord_{bin}|>" for bin in item.bins]}


def taught(text: str, truth: list[GroundTruthObject], vocabulary: CoordinateVocabulary, **weights: object) -> Target:
    parsed = parse_rollout(vocabulary.encode(text), vocabulary)
    match = match_objects(parsed.predictions, truth)
    return rollout_target("train:1", PROMPT, truth, parsed, match, vocabulary, **weights)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(objects)
def test_what_is_written_is_read_back(vocabulary: CoordinateVocabulary, items: list[GroundTruthObject]) -> None:
    ids = [*vocabulary.encode(answer_text(items)), vocabulary.im_end_id]
    parsed = parse_rollout(ids, vocabulary)
    assert [(each.desc, each.kind, each.bins) for each in parsed.predictions] == [
        (item.desc, item.kind, item.bins) for item in items
    ]
    assert parsed.empty is not bool(items)
    assert not parsed.dropped
    assert not parsed.truncated
    assert ground_truth_target("train:1", PROMPT, items, vocabulary).token_ids == (*PROMPT, *ids)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_ground_truth_object_is_taught_exactly_once(
    vocabulary: CoordinateVocabulary, data: st.DataObject
) -> None:
    truth = data.draw(objects)
    said = data.draw(st.lists(st.sampled_from(truth), max_size=4)) if truth else []
    said = data.draw(st.permutations(said + data.draw(objects)[:2]))
    text = answer_text(said) + END
    if data.draw(st.booleans()):
        text = text.replace(
            '"object_2"', data.draw(st.sampled_from(['"object_2x"', '"object_7"', '"object_1"', '"x"']))
        )
    ids = vocabulary.encode(text)
    ids = ids[: data.draw(st.integers(0, len(ids)))]
    parsed = parse_rollout(ids, vocabulary)
    match = match_objects(parsed.predictions, truth)
    extras = data.draw(st.sampled_from(["keep", "drop"]))
    structure = data.draw(st.sampled_from([0.0, 0.5]))
    weights = TargetWeights(prefix_extras=extras, prefix_structure_ce_weight=structure)  # type: ignore[arg-type]
    whole = rollout_target("train:1", PROMPT, truth, parsed, match, vocabulary, weights=weights)
    alone = ground_truth_target("train:1", PROMPT, truth, vocabulary, weights)
    check_target(whole, truth, parsed, match, vocabulary, weights)
    capacity = data.draw(st.integers(alone.num_tokens, max(alone.num_tokens, whole.num_tokens)))
    short = rollout_target("train:1", PROMPT, truth, parsed, match, vocabulary, capacity, weights)
    assert short.num_tokens <= capacity
    assert (short.num_shortened == 0) == (short == whole)
    check_target(short, truth, parsed, match, vocabulary, weights)


def check_target(
    target: Target,
    truth: list[GroundTruthObject],
    parsed: ParsedRollout,
    match: Match,
    vocabulary: CoordinateVocabulary,
    weights: TargetWeights,
) -> None:
    kept = parsed.predictions if weights.prefix_extras == "keep" else [parsed.predictions[i] for i, _, _ in match.pairs]
    kept = kept[: len(kept) - target.num_shortened]
    entries = answer_of(target, vocabulary)
    assert target.token_ids[:3] == PROMPT
    assert target.token_ids[-1] == vocabulary.im_end_id
    assert sorted(bins for _, bins in target.boxes) == sorted(item.bins for item in truth)
    for positions, _ in target.boxes:
        assert all(vocabulary.is_coordinate(target.token_ids[position]) for position in positions)
    found = {j for i, j, _ in match.pairs if parsed.predictions[i] in kept}
    missing = [item for j, item in enumerate(truth) if j not in found]
    tail = entries[len(entries) - len(missing) :]
    assert [value for _, value in tail] == [shown(item) for item in missing]
    keys = Counter(key for key, _ in entries)
    assert all(keys[key] == 1 for key, _ in tail)
    assert list(target.ce_positions) == sorted(set(target.ce_positions))
    if weights.prefix_extras == "keep":
        prefix = parsed.prefix_token_ids[: max(kept[-1].positions) + 1] if kept else ()
        assert target.token_ids[3 : 3 + len(prefix)] == prefix
        if not weights.prefix_structure_ce_weight:
            assert target.ce_positions[0] == 3 + len(prefix)
    assert target.ce_denominator == ground_truth_target("x:1", (), truth, vocabulary, weights).ce_denominator


def test_the_tail_is_supervised_from_the_token_after_the_last_kept_coordinate(vocabulary: CoordinateVocabulary) -> None:
    target = taught(answer_text([CAT]) + END, [CAT, DOG], vocabulary)
    ids = [*vocabulary.encode(answer_text([CAT, DOG])), vocabulary.im_end_id]
    assert target.token_ids == (*PROMPT, *ids)
    coordinates = [3 + place for place, token_id in enumerate(ids) if vocabulary.is_coordinate(token_id)]
    assert target.boxes == ((tuple(coordinates[:4]), CAT.bins), (tuple(coordinates[4:]), DOG.bins))
    rest = [place for place in range(coordinates[3] + 1, 3 + len(ids)) if place not in coordinates]
    assert target.ce_positions == tuple(rest)
    assert set(target.ce_weights) == {1.0}


def test_box_slots_are_pulled_towards_the_matched_ground_truth(vocabulary: CoordinateVocabulary) -> None:
    near = GroundTruthObject("feline", "bbox_2d", (120, 300, 400, 700))
    target = taught(answer_text([DOG, near]) + END, [CAT], vocabulary)
    ((positions, bins),) = target.boxes
    assert bins == CAT.bins
    assert tuple(vocabulary.bin_of(target.token_ids[position]) for position in positions) == near.bins
    assert len(answer_of(target, vocabulary)) == 2


def test_a_reversed_prediction_gives_each_slot_its_own_bin(vocabulary: CoordinateVocabulary) -> None:
    text = answer_text([GroundTruthObject("cat", "bbox_2d", (410, 705, 110, 310))])
    target = taught(text + END, [CAT], vocabulary)
    ((positions, bins),) = target.boxes
    assert tuple(vocabulary.bin_of(target.token_ids[position]) for position in positions) == bins == CAT.bins


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


def test_dropping_extras_rewrites_the_prefix(vocabulary: CoordinateVocabulary) -> None:
    near = GroundTruthObject("feline", "bbox_2d", (120, 300, 400, 700))
    text = answer_text([DOG, near, OWL]).replace("object_3", "object_9")
    target = taught(
        text + END, [CAT, OWL, GroundTruthObject("bee", "bbox_2d", (0, 0, 9, 9))], vocabulary, prefix_extras="drop"
    )
    bee = GroundTruthObject("bee", "bbox_2d", (0, 0, 9, 9))
    assert target.token_ids == (*PROMPT, *vocabulary.encode(answer_text([near, OWL, bee])), vocabulary.im_end_id)
    assert [bins for _, bins in target.boxes] == [CAT.bins, OWL.bins, bee.bins]


def test_a_desc_that_spells_a_special_token_stays_text(vocabulary: CoordinateVocabulary) -> None:
    text = answer_text([CAT]).replace("cat", "\\u003c|im_end|> \\u003c|coord_3|>") + END
    target = taught(text, [CAT, DOG], vocabulary, prefix_extras="drop")
    assert [token_id for token_id in target.token_ids if token_id == vocabulary.im_end_id] == [target.token_ids[-1]]
    assert answer_of(target, vocabulary)[0][1]["desc"] == "<|im_end|> <|coord_3|>"
    assert sum(vocabulary.is_coordinate(token_id) for token_id in target.token_ids) == 8


def test_a_geometry_written_first_is_closed_with_its_desc(vocabulary: CoordinateVocabulary) -> None:
    values = ", ".join(f'"<|coord_{bin}|>"' for bin in CAT.bins)
    text = f'{{"object_1": {{"bbox_2d": [{values}], "desc": "c\\u003c|im_end|>"}}}}'
    target = taught(text + END, [CAT, DOG], vocabulary)
    assert target.token_ids.count(vocabulary.im_end_id) == 1
    answer = vocabulary.decode_pieces(target.token_ids[3:]).decode().removesuffix(END)
    assert [entry["desc"] for entry in json.loads(answer).values()] == ["c<|im_end|>", "brown dog"]


def test_numbering_goes_on_after_the_highest_key_in_the_prefix(vocabulary: CoordinateVocabulary) -> None:
    text = answer_text([CAT, OWL]).replace("object_1", "object_7") + END
    assert [key for key, _ in answer_of(taught(text, [CAT, DOG], vocabulary), vocabulary)] == [
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

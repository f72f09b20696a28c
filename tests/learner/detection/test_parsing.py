"""Rollouts are parsed strictly, and the same however their ids arrive."""

import itertools
import json
import random
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.detection.parsing import ParsedRollout, RolloutParser, parse_rollout
from learner.detection.vocabulary import CoordinateVocabulary

BOX = '["<|coord_110|>", "<|coord_310|>", "<|coord_410|>", "<|coord_705|>"]'
FULL = f'{{"desc": "cat", "bbox_2d": {BOX}}}'
INTEGERS = '{"desc": "dog", "bbox_2d": [1, 2, 3, 4]}'


@dataclass(frozen=True)
class WorkedCase:
    """An answer in text, and what must be made of it. `prefix` is the text it must end with the last coordinate of."""

    name: str
    text: str
    num_predictions: int = 0
    prefix: str = ""
    dropped: dict[str, int] = field(default_factory=dict)
    notices: dict[str, int] = field(default_factory=dict)
    next_index: int = 1
    truncated: bool = False
    malformed: bool = False
    empty: bool = False


def _to_last_coordinate(text: str) -> str:
    return text[: text.rindex("|>") + 2]


ONE = f'{{"object_1": {FULL}'
END = "<|im_end|>"
WORKED_CASES = [
    WorkedCase("whole", ONE + "}" + END, 1, ONE, next_index=2),
    WorkedCase(
        "cut inside the second",
        ONE + ', "object_2": {"desc": "do',
        1,
        ONE,
        {"incomplete": 1},
        next_index=2,
        truncated=True,
    ),
    WorkedCase("empty object", "{}" + END, empty=True),
    WorkedCase("cut inside the first", '{"object_1": {"desc": "ca', dropped={"incomplete": 1}, truncated=True),
    WorkedCase("no brace", "I see a cat." + END, malformed=True),
    WorkedCase("nothing at all", "", malformed=True),
    WorkedCase("white space only", "  \n" + END, malformed=True),
    WorkedCase("text before", "Sure: " + ONE + "}" + END, malformed=True),
    WorkedCase("a list", "[" + ONE + "}]" + END, malformed=True),
    WorkedCase("integers", '{"object_1": ' + INTEGERS + "}" + END, dropped={"not_coordinates": 1}),
    WorkedCase(
        "integers between valid ones",
        f'{ONE}, "object_2": {INTEGERS}, "object_3": {FULL}}}{END}',
        2,
        f'{ONE}, "object_2": {INTEGERS}, "object_3": {FULL}',
        {"not_coordinates": 1},
        next_index=4,
    ),
    WorkedCase(
        "integers at the end", f'{ONE}, "object_2": {INTEGERS}}}{END}', 1, ONE, {"not_coordinates": 1}, next_index=2
    ),
    WorkedCase(
        "the same key twice",
        f'{ONE}, "object_1": {FULL}}}{END}',
        2,
        f'{ONE}, "object_1": {FULL}',
        notices={"duplicate_key": 1},
        next_index=2,
    ),
    WorkedCase("an extra key", ONE[:-1] + ', "score": 1}}' + END, dropped={"extra_key": 1}),
    WorkedCase("desc twice", ONE[:-1] + ', "desc": "cat"}}' + END, dropped={"extra_key": 1}),
    WorkedCase("both geometries", f'{ONE[:-1]}, "poly": {BOX}}}}}{END}', dropped={"extra_key": 1}),
    WorkedCase("no desc", f'{{"object_1": {{"bbox_2d": {BOX}}}}}{END}', dropped={"missing_key": 1}),
    WorkedCase("no geometry", '{"object_1": {"desc": "cat"}}' + END, dropped={"missing_key": 1}),
    WorkedCase("no object", '{"object_1": "cat"}' + END, dropped={"not_object": 1}),
    WorkedCase("blank desc", ONE.replace("cat", "  ") + "}" + END, dropped={"bad_desc": 1}),
    WorkedCase("desc is a number", ONE.replace('"cat"', "7") + "}" + END, dropped={"bad_desc": 1}),
    WorkedCase("half a surrogate", ONE.replace("cat", "\\ud800") + "}" + END, dropped={"bad_desc": 1}),
    WorkedCase("three values", ONE.replace('"<|coord_110|>", ', "") + "}" + END, dropped={"arity": 1}),
    WorkedCase("five values", ONE.replace('["', '["<|coord_1|>", "') + "}" + END, dropped={"arity": 1}),
    WorkedCase("no values", '{"object_1": {"desc": "cat", "bbox_2d": []}}' + END, dropped={"arity": 1}),
    WorkedCase(
        "x1 > x2",
        ONE.replace("_110", "_900") + "}" + END,
        1,
        ONE.replace("_110", "_900"),
        notices={"reversed": 1},
        next_index=2,
    ),
    WorkedCase(
        "structure inside desc",
        ONE.replace("cat", '{}, \\"object_9\\": ]}') + "}" + END,
        1,
        ONE.replace("cat", '{}, \\"object_9\\": ]}'),
        next_index=2,
    ),
    WorkedCase("two answers", ONE + "}" + ONE + "}" + END, malformed=True),
    WorkedCase("an early close", f'{ONE}}}, "object_2": {FULL}}}{END}', malformed=True),
    WorkedCase("a list of objects", '{"objects": [' + FULL + "]}" + END, dropped={"bad_key": 1}),
    WorkedCase("number zero", ONE.replace("object_1", "object_0") + "}" + END, dropped={"bad_key": 1}),
    WorkedCase("a leading zero", ONE.replace("object_1", "object_01") + "}" + END, dropped={"bad_key": 1}),
    WorkedCase(
        "escapes in desc",
        ONE.replace("cat", "caf\\u00e9 \\\\") + "}" + END,
        1,
        ONE.replace("cat", "caf\\u00e9 \\\\"),
        next_index=2,
    ),
    WorkedCase(
        "an escaped key",
        ONE.replace("object_1", "object\\u005f4") + "}" + END,
        1,
        ONE.replace("object_1", "object\\u005f4"),
        next_index=5,
    ),
    WorkedCase("a longer key", f'{ONE}, "object_1x": {FULL}}}{END}', 1, ONE, {"bad_key": 1}, next_index=2),
    WorkedCase("zero width", ONE.replace("_410", "_110") + "}" + END, dropped={"degenerate": 1}),
    WorkedCase("zero height", ONE.replace("_705", "_310") + "}" + END, dropped={"degenerate": 1}),
    WorkedCase(
        "no colon", f'{ONE}, "object_2" {FULL}, "object_3": {FULL}}}{END}', 1, ONE, {"bad_json": 1}, next_index=2
    ),
    WorkedCase("a dangling comma", ONE + ", }" + END, 1, ONE, {"bad_json": 1}, next_index=2),
    WorkedCase("no comma", f'{ONE} "object_2": {FULL}}}{END}', 1, ONE, {"bad_json": 1}, next_index=2),
    WorkedCase("a line break in desc", ONE.replace("cat", "c\nt") + "}" + END, dropped={"bad_json": 1}),
    WorkedCase(
        "a bare coordinate", ONE.replace('"<|coord_110|>"', "<|coord_110|>") + "}" + END, dropped={"bad_json": 1}
    ),
    WorkedCase("not a number", '{"object_1": NaN}' + END, dropped={"bad_json": 1}),
    WorkedCase("white space around", " \n" + ONE + "}\n " + END, 1, " \n" + ONE, next_index=2),
    WorkedCase(
        "white space within",
        ONE.replace(", ", " ,\n").replace(":", " : ") + " }" + END,
        1,
        ONE.replace(", ", " ,\n").replace(":", " : "),
        next_index=2,
    ),
    WorkedCase("a polygon", '{"object_1": {"desc": "cat", "poly": ["<|coord_1|>"]}}' + END, dropped={"poly": 1}),
    WorkedCase(
        "geometry first",
        f'{{"object_1": {{"bbox_2d": {BOX}, "desc": "cat"}}}}{END}',
        1,
        f'{{"object_1": {{"bbox_2d": {BOX}',
        next_index=2,
    ),
    WorkedCase("a spelled end", ONE + "}<|im_" + "end|> and more", 1, ONE, next_index=2),
    WorkedCase("no end", ONE, 1, ONE, next_index=2, truncated=True),
    WorkedCase("an end inside", ONE + ", " + END, 1, ONE, next_index=2, truncated=True),
    WorkedCase(
        "a token inside a value",
        ONE.replace('"<|coord_110|>"', '" <|coord_110|>"') + "}" + END,
        dropped={"not_coordinates": 1},
    ),
    WorkedCase(
        "an escaped coordinate",
        ONE.replace("<|coord_110|>", "\\u003c|coord_110|>") + "}" + END,
        dropped={"not_coordinates": 1},
    ),
]


@pytest.mark.parametrize("case", WORKED_CASES, ids=lambda case: case.name)
def test_worked_cases(case: WorkedCase, vocabulary: CoordinateVocabulary) -> None:
    ids = vocabulary.encode(case.text)
    parsed = parse_rollout(ids, vocabulary)
    assert len(parsed.predictions) == case.num_predictions
    assert parsed.dropped == case.dropped
    assert parsed.notices == case.notices
    assert parsed.next_index == case.next_index
    assert (parsed.truncated, parsed.malformed, parsed.empty) == (case.truncated, case.malformed, case.empty)
    assert parsed.invalid is (not case.num_predictions and not case.empty)
    assert list(parsed.prefix_token_ids) == ids[: len(parsed.prefix_token_ids)]
    prefix = vocabulary.decode_pieces(parsed.prefix_token_ids).decode()
    assert prefix == (case.prefix and _to_last_coordinate(case.prefix))


@pytest.mark.parametrize("case", WORKED_CASES, ids=lambda case: case.name)
def test_any_split_of_the_ids_gives_the_same_result(case: WorkedCase, vocabulary: CoordinateVocabulary) -> None:
    ids = vocabulary.encode(case.text)
    whole = parse_rollout(ids, vocabulary)
    rng = random.Random(0)
    splits = [list(range(len(ids) + 1))] + [
        sorted({0, len(ids), *(rng.randint(0, len(ids)) for _ in range(rng.randint(0, 6)))}) for _ in range(8)
    ]
    for split in splits:
        assert fed(ids, split, vocabulary) == whole


def fed(ids: list[int], split: list[int], vocabulary: CoordinateVocabulary) -> ParsedRollout:
    parser = RolloutParser(vocabulary)
    for start, end in itertools.pairwise(split):
        parser.feed(ids[start:end])
    return parser.finish()


def test_spelled_tokens_are_not_the_tokens_they_spell(vocabulary: CoordinateVocabulary) -> None:
    coordinate = vocabulary.encode("<|coord_1") + vocabulary.encode("10|>")
    before, after = ONE.split("<|coord_110|>")
    ids = vocabulary.encode(before) + coordinate + vocabulary.encode(after + "}" + END)
    assert parse_rollout(ids, vocabulary).dropped == {"not_coordinates": 1}
    spelled = vocabulary.encode(ONE + "}<|im_") + vocabulary.encode("end|> and more")
    assert len(parse_rollout(spelled, vocabulary).predictions) == 1
    assert fed(spelled, list(range(len(spelled) + 1)), vocabulary) == parse_rollout(spelled, vocabulary)


def test_a_reversed_box_is_sorted_and_its_positions_are_not(vocabulary: CoordinateVocabulary) -> None:
    ids = vocabulary.encode(ONE.replace("_110", "_900").replace("_310", "_800") + "}" + END)
    (prediction,) = parse_rollout(ids, vocabulary).predictions
    assert prediction.bins == (410, 705, 900, 800)
    assert tuple(vocabulary.bin_of(ids[position]) for position in prediction.positions) == (900, 800, 410, 705)


def test_positions_hold_the_coordinates_after_dropped_entries(vocabulary: CoordinateVocabulary) -> None:
    text = f'{{"object_1": {{"desc": "a <|coord_5|>", "x": {BOX}}}, "object_2": {FULL}, "object_3": {FULL}}}{END}'
    ids = vocabulary.encode(text)
    parsed = parse_rollout(ids, vocabulary)
    assert [prediction.index for prediction in parsed.predictions] == [2, 3]
    for prediction in parsed.predictions:
        assert tuple(vocabulary.bin_of(ids[position]) for position in prediction.positions) == (110, 310, 410, 705)


@pytest.mark.parametrize(
    "desc", ["é", "猫 on a mat", "😀", 'a "b" \\ c', "<|coord_5|> sticker", "tab\there", "line\u2028break"]
)
def test_desc_comes_back_exactly(desc: str, vocabulary: CoordinateVocabulary) -> None:
    for text in (json.dumps(desc), json.dumps(desc, ensure_ascii=False)):
        ids = vocabulary.encode(ONE.replace('"cat"', text) + "}" + END)
        (prediction,) = parse_rollout(ids, vocabulary).predictions
        assert prediction.desc == desc


def test_a_character_cut_by_a_foreign_token_is_bad_json(vocabulary: CoordinateVocabulary) -> None:
    ids = vocabulary.encode(ONE.replace("cat", "é"))
    broken = [token for token in ids if vocabulary.decode_pieces([token]) != b"\xa9"]
    assert len(broken) < len(ids)
    assert parse_rollout(broken, vocabulary).dropped == {"bad_json": 1}


def test_polygons_are_predictions_where_they_are_asked_for(vocabulary: CoordinateVocabulary) -> None:
    values = ", ".join(f'"<|coord_{bin}|>"' for bin in (1, 2, 300, 4, 150, 600))
    ids = vocabulary.encode(f'{{"object_1": {{"desc": "cat", "poly": [{values}]}}}}{END}')
    (prediction,) = parse_rollout(ids, vocabulary, kinds=("bbox_2d", "poly")).predictions
    assert (prediction.kind, prediction.bins) == ("poly", (1, 2, 300, 4, 150, 600))
    assert parse_rollout(ids, vocabulary, kinds=("bbox_2d", "poly")).dropped == {}
    odd = vocabulary.encode('{"object_1": {"desc": "cat", "poly": [' + ", ".join(['"<|coord_1|>"'] * 7) + "]}}")
    assert parse_rollout(odd, vocabulary, kinds=("poly",)).dropped == {"arity": 1}
    boxes = vocabulary.encode(ONE + "}" + END)
    assert parse_rollout(boxes, vocabulary, kinds=("poly",)).dropped == {"bbox_2d": 1}


def test_finish_reason_length_is_truncated_even_when_balanced(vocabulary: CoordinateVocabulary) -> None:
    ids = vocabulary.encode(ONE + "}")
    assert parse_rollout(ids, vocabulary, "length").truncated
    assert not parse_rollout(ids, vocabulary, "stop").truncated


def test_ids_after_the_stop_are_ignored(vocabulary: CoordinateVocabulary) -> None:
    ids = vocabulary.encode(ONE + "}")
    for stop in sorted(vocabulary.stop_ids):
        answer = [*ids, stop, *ids]
        assert len(parse_rollout(answer, vocabulary).predictions) == 1
        assert fed(answer, list(range(len(answer) + 1)), vocabulary) == parse_rollout(answer, vocabulary)


def test_ids_outside_the_vocabulary_are_bad_json_not_a_crash(vocabulary: CoordinateVocabulary) -> None:
    ids = vocabulary.encode(ONE.replace("cat", "ca"))
    ids.insert(len(vocabulary.encode('{"object_1": {"desc": "c')), 10**9)
    assert parse_rollout(ids, vocabulary).dropped == {"bad_json": 1}
    assert parse_rollout([-1, 10**9], vocabulary).malformed


def test_a_number_too_long_for_int_is_a_bad_key(vocabulary: CoordinateVocabulary) -> None:
    ids = vocabulary.encode(ONE.replace("object_1", "object_" + "9" * 5000) + "}")
    assert parse_rollout(ids, vocabulary).dropped == {"bad_key": 1}


NESTED = ["[", "]", "{", "}", '"a": ', '"a"', ", ", "1", "-0.5e3", "01", "true", "nul", " ", '"\\u12', "\\"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(NESTED), max_size=12).map("".join))
def test_any_json_value_of_an_entry_is_told_from_what_is_none(
    plain_vocabulary: CoordinateVocabulary, value: str
) -> None:
    text = f'{{"x": {value}, "y": 1}}'
    parsed = parse_rollout(plain_vocabulary.encode(text), plain_vocabulary)
    try:
        entries = json.loads(text, object_pairs_hook=list)
    except ValueError:
        assert parsed.malformed or parsed.truncated or parsed.dropped["bad_json"]
    else:
        assert parsed.dropped == {"bad_key": len(entries)}


@pytest.mark.parametrize(
    "unit",
    [
        '{"object_1": {"desc": "',
        '{"object_1": ' + "[" * 50,
        '{"object_1": {"desc": "' + "\\" * 51,
        "<|im_",
        '{"a": [[],[[],[',
        FULL + ", ",
    ],
)
def test_time_is_linear_in_the_answer(unit: str, plain_vocabulary: CoordinateVocabulary) -> None:
    ids = plain_vocabulary.encode('{"object_1": {"desc": "') + plain_vocabulary.encode(unit) * 2000
    for size in (1, len(ids)):
        short = min(cpu_seconds(ids[:2000], size, plain_vocabulary) for _ in range(3))
        long = min(cpu_seconds(ids[:16_000], size, plain_vocabulary) for _ in range(2))
        assert long < 3 * 8 * short + 0.02


def cpu_seconds(ids: list[int], chunk_size: int, vocabulary: CoordinateVocabulary) -> float:
    started = time.process_time()
    parser = RolloutParser(vocabulary)
    for start in range(0, len(ids), chunk_size):
        parser.feed(ids[start : start + chunk_size])
    parser.finish()
    return time.process_time() - started

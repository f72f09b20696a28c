"""The answer format, to the letter."""

import re

from hypothesis import given
from hypothesis import strategies as st

from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text, closing_with_desc, most_answer_tokens

CAT = GroundTruthObject("black cat", "bbox_2d", (110, 310, 410, 705))


def test_one_line_with_desc_before_geometry() -> None:
    assert answer_text([CAT]) == (
        '{"object_1": {"desc": "black cat", "bbox_2d": '
        '["<|coord_110|>", "<|coord_310|>", "<|coord_410|>", "<|coord_705|>"]}}'
    )


def test_objects_are_numbered_from_the_start_index_in_the_order_given() -> None:
    poly = GroundTruthObject('a "猫"\\', "poly", (1, 2, 3, 4, 5, 6))
    text = answer_text([poly, CAT], start_index=9)
    assert text.startswith('{"object_9": {"desc": "a \\"猫\\"\\\\", "poly": ["<|coord_1|>", "<|coord_2|>", ')
    assert text.index('"]}, "object_10": {"desc": "black cat"') > 0


def test_no_objects_is_an_empty_object() -> None:
    assert answer_text([]) == "{}"


def test_a_geometry_written_first_is_closed_with_desc() -> None:
    assert closing_with_desc('a "b"') == '"], "desc": "a \\"b\\""}'


objects = st.builds(
    GroundTruthObject,
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=6),
    st.just("bbox_2d"),
    st.tuples(*[st.integers(0, 999)] * 4),
)


@given(st.lists(objects, max_size=12))
def test_an_answer_has_at_most_a_token_a_byte_and_one_a_coordinate(items: list[GroundTruthObject]) -> None:
    text = re.sub(r"<\|coord_\d+\|>", "#", answer_text(items).replace("#", "?"))
    bound = most_answer_tokens([item.desc for item in items], 4 * len(items))
    assert len(text.encode()) + 1 <= bound <= len(text.encode()) + len(items) + 3

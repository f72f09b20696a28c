"""The answer format, to the letter."""

from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text, closing_with_desc

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

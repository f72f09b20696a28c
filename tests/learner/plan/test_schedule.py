import pytest

from learner.plan.schedule import Channel, channel_of


def test_channels_repeat_the_pattern_as_a_function_of_the_step_alone() -> None:
    assert "".join(channel_of(step, ["A", "A", "B"]).value for step in range(7)) == "AABAABA"
    assert channel_of(3_000_002, ["A", "A", "B"]) is Channel.B


@pytest.mark.parametrize(("step", "pattern"), [(0, ["C"]), (0, []), (-1, ["A"]), (0, ["a"])])
def test_anything_but_a_and_b_is_refused(step: int, pattern: list[str]) -> None:
    with pytest.raises(ValueError, match=r"pattern|Channel"):
        channel_of(step, pattern)

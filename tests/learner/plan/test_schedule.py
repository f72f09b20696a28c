import pytest

from learner.plan.schedule import Channel, channel_of, decode_lags, decode_starts


def test_channels_repeat_the_pattern_as_a_function_of_the_step_alone() -> None:
    assert "".join(channel_of(step, ["A", "A", "B"]).value for step in range(7)) == "AABAABA"
    assert channel_of(3_000_002, ["A", "A", "B"]) is Channel.B


@pytest.mark.parametrize(("step", "pattern"), [(0, ["C"]), (0, []), (-1, ["A"]), (0, ["a"])])
def test_anything_but_a_and_b_is_refused(step: int, pattern: list[str]) -> None:
    with pytest.raises(ValueError, match=r"pattern|Channel"):
        channel_of(step, pattern)


@pytest.mark.parametrize(
    ("pattern", "max_lag", "starts"),
    [
        ("AAB", 0, {2: 2, 5: 5, 8: 8}),
        ("AAB", 1, {2: 1, 5: 4, 8: 7}),
        ("AAB", 9, {2: 0, 5: 3, 8: 6}),
        ("ABB", 2, {1: 0, 2: 2, 4: 3, 5: 5, 7: 6, 8: 8}),
        ("A", 3, {}),
    ],
)
def test_a_decoding_begins_as_early_as_its_lag_and_the_one_before_allow(
    pattern: str, max_lag: int, starts: dict[int, int]
) -> None:
    assert dict(decode_starts(pattern, max_lag, 9)) == starts


def test_lags_are_those_of_the_pattern_in_its_stride() -> None:
    assert decode_lags("AAB", 9) == [2]
    assert decode_lags("BAB", 9) == [0, 1]
    assert decode_lags("A", 9) == []

"""Progress of long work where nobody watches a bar."""

import pytest

from learner.data import progress


@pytest.mark.parametrize(("total", "said"), [(4, ["25%", "50%", "75%", "100%"]), (None, ["1", "2", "3", "4"])])
def test_lines_are_told_every_now_and_then(
    total: int | None, said: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [*progress.with_progress("reading", "abcd", total)] == [*"abcd"]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "TELL_EVERY_S", -1)
    assert [*progress.with_progress("reading", "abcd", total)] == [*"abcd"]
    assert capsys.readouterr().err.splitlines() == [f"reading: {each}" for each in said]

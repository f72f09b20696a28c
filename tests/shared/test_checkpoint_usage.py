"""What a checkpoint says of how it is asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.checkpoint_usage import CheckpointUsage, read_usage, save_usage
from shared.errors import DataError
from shared.wire import RepeatTerminate

USAGE = CheckpointUsage(
    system="You detect objects.",
    user_prompt='Detect "all" objects — 全部.\n',
    object_ordering="sorted",
    min_pixels=None,
    max_pixels=1 << 20,
    stop_tokens=("<|endoftext|>", "<|im_end|>"),
    max_model_len=4096,
    max_new_tokens=1024,
    repetition_penalty=1.1,
    repeat_terminate=RepeatTerminate(max_object_keys=64),
)


def test_what_was_saved_is_read_and_a_checkpoint_may_say_nothing(tmp_path: Path) -> None:
    assert read_usage(tmp_path) is None
    file = save_usage(USAGE, tmp_path)
    assert file.name == "boxloop.json"
    assert read_usage(tmp_path) == USAGE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "is of version 2, and this Boxloop reads up to 1: upgrade Boxloop"),
        ({"version": 2, "of_tomorrow": True}, "is of version 2"),
        ({"version": 0}, r"is broken \(version: .*delete it and the built-in prompt is used"),
        ({"max_pixels": 0}, r"is broken \(max_pixels: .*greater than 0"),
        ({"user_promt": ""}, r"is broken \(user_promt: Extra"),
        ({"coordinate_tokens": "<{bin}>"}, r"is broken \(coordinate_tokens: "),
    ],
)
def test_a_file_that_cannot_be_meant_is_told_with_its_cure(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = save_usage(USAGE, tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match=f"^{file} {said}") as raised:
        read_usage(tmp_path)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"1"', "null", '{"version": "1"}'])
def test_what_is_no_such_file_is_broken(tmp_path: Path, content: str) -> None:
    (tmp_path / "boxloop.json").write_text(content)
    with pytest.raises(DataError, match=r"boxloop\.json is broken"):
        read_usage(tmp_path)

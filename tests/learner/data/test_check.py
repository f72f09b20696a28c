"""`boxloop data check` says what is in a file and lists every error with its line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from learner.data.check import main, percentile


def write(folder: Path, *objects_by_line: list[dict[str, object]] | str) -> Path:
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    path = folder / "train.jsonl"
    path.write_text(
        "\n".join(
            line
            if isinstance(line, str)
            else json.dumps({"images": ["a.png"], "width": 64, "height": 48, "objects": line})
            for line in objects_by_line
        )
    )
    return path


CAT = {"desc": "cat", "bbox_2d": [1, 2, 30, 40]}


def test_a_good_file_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(tmp_path, [CAT], [], [CAT, {"desc": "dog", "poly": [1, 2, 30, 40, 5, 6]}]))]) == 0
    shown = capsys.readouterr().out
    assert "3 records, 0 errors" in shown
    assert "3, 2 bbox_2d, 1 poly" in shown
    assert "2 different, 'cat' 2, 'dog' 1" in shown
    assert [line.split() for line in shown.splitlines() if "objects a record" in line] == [
        ["objects", "a", "record", "0", "1", "2", "2", "2"]
    ]


def test_every_error_is_listed_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, [CAT], "{", [CAT, {"desc": "", "bbox_2d": [1, 2, 3, 4]}])
    assert main([str(path)]) == 1
    errors = [line.strip() for line in capsys.readouterr().out.splitlines() if "error:" in line]
    assert errors[0].startswith(f"error: {path}:2: bad JSON")
    assert errors[1].startswith(f"error: {path}:3: object 1: desc must be a non-blank string")
    assert len(errors) == 2


def test_prompts_of_records_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, [CAT])
    plain = json.loads(path.read_text())
    asking: list[dict[str, object]] = [{}, {"prompt": "Cats?"}, {"classes": ["cat"]}, {"classes": ["cat", "dog"]}]
    path.write_text("\n".join(json.dumps({**plain, **each}) for each in asking))
    assert main([str(path)]) == 0
    assert "prompts     1 of the records' own, 2 with classes" in capsys.readouterr().out
    path.write_text(json.dumps({**plain, "prompt": "Cats?", "classes": ["cat"]}))
    assert main([str(path)]) == 1
    assert f"error: {path}:1: both prompt and classes" in capsys.readouterr().out


def test_special_tokens_of_a_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [{"content": "<|odd|>", "special": True}, {"content": "cat", "special": False}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    path = write(tmp_path, [CAT], [{**CAT, "desc": "a <|odd|>"}])
    assert main([str(path)]) == 0
    assert main([str(path), "--model", str(tmp_path)]) == 1
    assert "special token <|odd|>" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["<|im_end|>", "<|image_pad|>", "<|coord_5|>"])
def test_special_tokens_of_every_family_are_refused_without_a_model(tmp_path: Path, text: str) -> None:
    assert main([str(write(tmp_path, [{**CAT, "desc": f"a {text}"}]))]) == 1


def test_a_missing_file_is_a_bad_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err


def test_it_starts_without_torch(tmp_path: Path) -> None:
    program = "import sys, learner.data.check, learner.data.from_dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_percentiles_are_nearest_ranks() -> None:
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (0, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([7], 0) == percentile([7], 50) == 7


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"added_tokens": 7}'])
def test_a_model_that_cannot_be_read_is_one_line_and_2(tmp_path: Path, content: str | None, capsys) -> None:
    model = tmp_path / "model"
    model.mkdir()
    if content is not None:
        (model / "tokenizer.json").write_text(content)
    assert main([str(write(tmp_path, [CAT])), "--model", str(model)]) == 2
    assert f"--model {model} cannot be read" in capsys.readouterr().err

"""`boxloop init`: from a stock checkpoint to one that can be trained, and what has its tokens stays as it is."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from learner.checkpoints.init import main
from learner.detection.vocabulary import CoordinateVocabulary, coordinate_text
from learner.families.load import load_tokenizer
from learner.model.coordinate_rows import check_coordinate_rows, indistinct_matrices
from shared.config.training import TunerSection
from shared.errors import ConfigError
from tests.stock_checkpoint import NUM_PADDED, stock_tokenizer, write_stock

NUM_KNOWN = len(stock_tokenizer())
IDS = range(NUM_KNOWN, NUM_KNOWN + 1000)
LORA = TunerSection(train_type="lora")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def stock(tied: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock checkpoint; treat it as read-only."""
    folder = tmp_path_factory.mktemp("stock")
    write_stock(folder, tied=tied)
    return folder


@pytest.fixture(scope="module")
def made(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `boxloop init` makes of it; treat it as read-only."""
    folder = tmp_path_factory.mktemp("made") / "model"
    assert main([str(stock), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def resized(stock: Path, tmp_path: Path) -> Path:
    """What people make of it by hand: tokens added, rows means of the vocabulary, as transformers resizes."""
    folder = tmp_path / "resized"
    tokenizer, model = load_tokenizer(str(stock)), load(stock)
    tokenizer.add_tokens([coordinate_text(bin) for bin in range(1000)], special_tokens=True)
    with torch.no_grad():
        for layer in matrices(model):
            layer[NUM_KNOWN:] = layer[:NUM_KNOWN].float().mean(0)  # the stock's own padding is told apart
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")


def matrices(model: Any) -> list[torch.Tensor]:
    """The matrix of embeddings and head, or both."""
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [embeddings] if head is embeddings else [embeddings, head]


def test_the_model_has_a_row_for_each_coordinate_and_all_else_as_it_was(stock: Path, made: Path, tied: bool) -> None:
    before, after = load(stock), load(made)
    assert CoordinateVocabulary.from_tokenizer(load_tokenizer(str(made))).coordinate_ids == tuple(IDS)
    assert after.config.text_config.vocab_size == IDS.stop
    assert [len(each) for each in matrices(after)] == [IDS.stop] * (1 if tied else 2)
    assert after.dtype is torch.bfloat16
    whole = {id(each) for each in matrices(after)}
    old = before.state_dict()
    for name, tensor in after.state_dict(keep_vars=True).items():
        assert tensor[:NUM_KNOWN].equal(old[name][:NUM_KNOWN]) if id(tensor) in whole else tensor.equal(old[name]), name


def test_new_rows_are_smooth_in_the_bin_and_as_large_as_the_others(made: Path) -> None:
    for matrix in matrices(load(made)):
        rows, others = matrix[NUM_KNOWN:].float(), matrix[:NUM_KNOWN].float()
        torch.testing.assert_close(rows.square().mean().sqrt(), others.square().mean().sqrt(), rtol=0.01, atol=0)
        similarity = rows @ rows[500]
        assert similarity.argmax() == 500
        assert similarity[501] > similarity[510] > similarity[700]
    assert indistinct_matrices(made, IDS) == ()
    assert check_coordinate_rows(made, IDS, LORA) == ""


def test_what_belongs_to_the_model_stands_beside_it(stock: Path, made: Path) -> None:
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json"):
        assert (made / name).read_bytes() == (stock / name).read_bytes()
    tokenizer = load_tokenizer(str(made))
    assert tokenizer.chat_template == json.loads((stock / "chat_template.json").read_text())["chat_template"]
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    assert {(added[each].special, added[each].normalized, added[each].lstrip) for each in IDS} == {(True, False, False)}
    assert "<think>" not in CoordinateVocabulary.from_tokenizer(tokenizer).special_texts
    ours, theirs = (GenerationConfig.from_pretrained(folder).to_diff_dict() for folder in (made, stock))
    assert ours == theirs
    assert not list(made.parent.glob(".*"))


def test_a_model_that_has_its_tokens_is_copied_or_left_bit_by_bit(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {path.name: path.read_bytes() for path in made.iterdir()}
    assert main([str(made), "--out", str(tmp_path / "copy")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == content
    assert "no row is changed" in capsys.readouterr().out
    assert main([str(made), "--out", str(made)]) == 0
    assert "left as it is" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in made.iterdir()} == content


def test_rows_that_cannot_be_told_apart_are_refused_under_adapters_and_init_is_the_cure(
    resized: Path, tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = "embeddings" if tied else "embeddings and the head"
    said = f"coordinate tokens of {resized} cannot be told apart, their rows in the {where} are all one"
    cure = f"boxloop init {resized} --out DIR"
    with pytest.raises(ConfigError, match=said) as refused:
        check_coordinate_rows(resized, IDS, LORA)
    assert cure in str(refused.value)
    warning = check_coordinate_rows(resized, IDS, TunerSection())
    assert said in warning
    assert cure in warning
    assert main([str(resized), "--out", str(tmp_path / "cured")]) == 0
    assert "no coordinate tokens added" in capsys.readouterr().out
    assert check_coordinate_rows(tmp_path / "cured", IDS, LORA) == ""


def test_tokens_whose_embeddings_were_not_resized_get_their_rows(stock: Path, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens alone"
    load(stock).save_pretrained(folder)
    load_tokenizer(str(made)).save_pretrained(folder)
    assert IDS.stop > NUM_KNOWN + NUM_PADDED
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    for ours, expected in zip(matrices(load(tmp_path / "out")), matrices(load(made)), strict=True):
        assert ours.equal(expected)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds adapters; .*boxloop export"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer of .* cannot be loaded"),
        (lambda folder: (folder / "model-00001-of-00003.safetensors").write_bytes(b""), "the model of .* cannot be"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "is a llama checkpoint"),
        (lambda folder: half_of_the_tokens(folder), "has 500 of the 1000 coordinate tokens .* all or none"),
    ],
    ids=["adapters", "tokenizer", "weights", "family", "half"],
)
def test_what_cannot_be_made_trainable_is_told_and_leaves_nothing(
    spoil: Callable[[Path], Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stock(tmp_path / "stock")
    spoil(tmp_path / "stock")
    assert main([str(tmp_path / "stock"), "--out", str(tmp_path / "out")]) == 2
    assert re.search(said, capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


def half_of_the_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens([coordinate_text(bin) for bin in range(500)], special_tokens=True)
    tokenizer.save_pretrained(folder)


def test_a_folder_that_is_taken_is_left_alone(stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main([str(stock), "--out", str(tmp_path)]) == 2
    assert "exists and is not empty" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_the_command_writes_the_folder(stock: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compose", "init", str(stock), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1000 coordinate tokens added" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()

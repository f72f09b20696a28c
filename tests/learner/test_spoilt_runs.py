"""Runs on data that people have: what cannot be read while it is learned, files that change, folders that are used."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learner.__main__ import main
from learner.data.kept_file import KeptFile
from learner.data.records import Reading, RecordSource
from shared.config.models import Config
from shared.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of twelve records that may be spoilt."""
    folder = tmp_path / "data"
    lines = (shapes / "train.jsonl").read_text().splitlines()[:12]
    for line in lines:
        name = json.loads(line)["images"][0]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / name, folder / name)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "train.jsonl"


def cut_image(data: Path, line: int) -> str:
    """Break the pixels of a record's image, not its header; returns its file."""
    file = data.parent / json.loads(data.read_text().splitlines()[line - 1])["images"][0]
    file.write_bytes(file.read_bytes()[:-40])
    return str(file)


@pytest.fixture
def train(config_of: Callable[..., Config], data: Path, tmp_path: Path) -> Callable[..., int]:
    """Train one epoch of Stage 1, three steps of four records; gives the exit code."""
    config_of()

    def run(*overrides: str, folder: str = "run") -> int:
        return main(
            [
                *("--config", str(tmp_path / "config.yaml"), "custom.trainer_variant=stage1_sft"),
                *(f"custom.train_jsonl={data}", f"training.output_dir={tmp_path / folder}"),
                *("training.num_train_epochs=1", "training.save_steps=100", "training.logging_steps=1"),
                *("custom.extra.rollout_matching.deterministic=true", *overrides),
            ]
        )

    return run


def ledger(folder: Path) -> list[dict[str, list[str]]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.reported("tabnet#537 robosat#228 three records, batch 8")
def test_nothing_to_train_ends_with_2_and_both_numbers(train, data: Path, capsys, tmp_path: Path) -> None:
    data.write_text("\n".join(data.read_text().splitlines()[:3]) + "\n")
    assert train("training.effective_batch_size=8", "training.per_device_train_batch_size=8") == 2
    told = capsys.readouterr().out
    assert "1 passes over the 3 records" in told
    assert "make no step of 8 records" in told
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.reported("ms-swift#3275 late-bad.jsonl, skip")
@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["image", "line"])
def test_a_record_that_spoils_while_training_is_lost_where_bad_ones_are_skipped(
    train, data: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    if spoilt == "image":
        cut_image(data, 5)
    else:
        spoil_line_after_the_start(data, 5, monkeypatch)
    assert train("custom.on_bad_record=skip") == 0
    steps = ledger(tmp_path / "run")
    assert [name for step in steps for name in step["lost"]] == ["train:5"]
    assert sorted(name for step in steps for name in step["trained"]) == sorted(
        f"train:{number}" for number in range(1, 13) if number != 5
    )
    assert "train:5 lost: " in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


def spoil_line_after_the_start(data: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write over a line in place, once the file has been indexed."""
    opened = RecordSource.opened.__func__  # type: ignore[attr-defined]

    def open_and_spoil(cls, *arguments, **options):
        found = opened(cls, *arguments, **options)
        lines = data.read_bytes().splitlines(keepends=True)
        with data.open("r+b") as file:
            file.seek(sum(map(len, lines[: number - 1])))
            file.write(b"#" * 20)
        return found

    monkeypatch.setattr(RecordSource, "opened", classmethod(open_and_spoil))


@pytest.mark.reported("ms-swift#3275 late-bad.jsonl, error")
@pytest.mark.slow
def test_a_run_that_ends_by_a_bad_record_saves_its_last_whole_step_and_goes_on_from_it(
    train, data: Path, tmp_path: Path, capsys
) -> None:
    assert train(folder="whole") == 0
    places = {name: place for place, step in enumerate(ledger(tmp_path / "whole")) for name in step["trained"]}
    late = next(name for name, place in places.items() if place == 2)
    line = int(late.partition(":")[2])
    file = Path(data.parent / json.loads(data.read_text().splitlines()[line - 1])["images"][0])
    whole = file.read_bytes()
    cut_image(data, line)
    assert train() == 2
    assert f"{late}: {file} cannot be read: " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    file.write_bytes(whole)
    assert train("training.resume_from_checkpoint=true") == 0
    ours, theirs = (load_file(tmp_path / name / "checkpoint-3" / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_group_without_one_readable_record_is_an_error(train, data: Path, capsys) -> None:
    for line in range(1, 13):
        cut_image(data, line)
    assert train("custom.on_bad_record=skip") == 2
    assert "every record of the step was lost" in capsys.readouterr().out


@pytest.mark.reported("open_lm#67 verl#7401 ms-swift#10050 a resume")
@pytest.mark.slow
def test_a_resume_names_what_changed_and_nothing_when_nothing_did(
    train, data: Path, tmp_path: Path, capsys, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    assert train("training.max_steps=1") == 0
    with caplog.at_level(logging.WARNING):
        assert train("training.max_steps=1", "training.resume_from_checkpoint=true") == 0
        assert "written with other values" not in caplog.text
        assert "step 1 of 1 is done: this run had finished" in capsys.readouterr().out

        data.write_text(data.read_text() + data.read_text().splitlines()[0] + "\n")
        resumed = ("training.max_steps=2", "training.resume_from_checkpoint=true", "training.learning_rate=0.001")
        assert train(*resumed) == 0
    assert "training.learning_rate: 5e-05 -> 0.001" in caplog.text
    assert "training.max_steps: 1 -> 2" in caplog.text
    assert f"custom.train_jsonl: the content of {data} is another" in caplog.text
    assert "resume_from_checkpoint" not in caplog.text
    kept = sorted(path.name for path in run.glob("config.resolved*.yaml"))
    assert kept == ["config.resolved-1.yaml", "config.resolved-2.yaml", "config.resolved.yaml"]


@pytest.mark.reported("torchtune#481 deepinv#525 a used folder")
@pytest.mark.slow
def test_a_start_in_a_used_folder_says_how_to_go_on_instead(
    train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train("training.max_steps=1") == 0
    assert train("training.max_steps=1") == 0
    assert f"training.resume_from_checkpoint: {tmp_path / 'run' / 'abandoned-1' / 'checkpoint-1'}" in caplog.text


@pytest.mark.reported("sed -i on train.jsonl")
def test_a_file_that_is_replaced_is_still_the_one_that_was_opened(data: Path, caplog) -> None:
    source, _ = RecordSource.opened(data, Reading(), seed=None)
    before = [source.record_at(place) for place in range(12)]
    assert not caplog.text
    other = data.with_name("other")
    other.write_text(data.read_text().replace("circle", "pear"))
    other.replace(data)
    assert [source.record_at(place) for place in range(12)] == before
    assert caplog.text.count("is another file now") == 1
    data.unlink()
    assert source.record_at(3) == before[3]
    assert "is gone" in caplog.text


def test_a_file_that_is_written_into_is_told_and_its_records_are_bad_ones(data: Path, caplog) -> None:
    for on_bad in ("error", "skip"):
        caplog.clear()
        text = data.read_bytes()
        source, _ = RecordSource.opened(data, Reading(on_bad_record=on_bad), seed=None)
        with data.open("r+b") as file:
            file.write(b"#" * 30)
        if on_bad == "error":
            with pytest.raises(DataError, match=r"train\.jsonl:1"):
                source.record_at(0)
        else:
            assert "train.jsonl:1" in source.record_at(0).fault
        assert caplog.text.count("has been written to") == 1
        data.write_bytes(text)


def test_a_kept_file_is_closed_with_what_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    kept = KeptFile(tmp_path / "a")
    assert kept.read(1, 9) == b"bc"
    assert kept.news() == ""


def test_the_name_of_a_record_is_short_however_long_its_file_s_is(tmp_path: Path, data: Path) -> None:
    long = data.with_name("狗" * 80 + ".jsonl")
    long.write_text(data.read_text())
    source, _ = RecordSource.opened(long, Reading(), seed=None)
    assert len(source.record_at(0).record_id.encode()) < 200

"""What the doctor finds in checkpoint, data and servers, each mistake by its own name."""

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.preflight import examine
from shared.config.models import Config
from shared.findings import Finding
from shared.preflight import run_preflight

SERVER = "custom.extra.rollout_matching.vllm"


@pytest.fixture
def run(config_of: Callable[..., Config], shapes: Path) -> Callable[..., Config]:
    """A run that nothing is wrong with, unless told otherwise."""
    return lambda *overrides: config_of(
        f"custom.train_jsonl={shapes / 'train.jsonl'}", f"custom.val_jsonl={shapes / 'val.jsonl'}", *overrides
    )


def found(config: Config) -> dict[str, Finding]:
    findings = list(examine(config))
    assert len({finding.check for finding in findings}) == len(findings)
    return {finding.check: finding for finding in findings}


def test_coordinate_rows_that_are_all_one_fail_under_adapters_and_are_warned_of_elsewhere(
    run, checkpoint: Path, tmp_path: Path
) -> None:
    one = shutil.copytree(checkpoint, tmp_path / "one")
    tensors = load_file(one / "model.safetensors")
    ids = list(CoordinateVocabulary.from_tokenizer(load_tokenizer(str(one))).coordinate_ids)
    tensors["model.language_model.embed_tokens.weight"][ids] = tensors["model.language_model.embed_tokens.weight"].mean(
        0
    )
    save_file(tensors, one / "model.safetensors", metadata={"format": "pt"})
    for tuner, status in (("full", "warn"), ("lora", "fail")):
        finding = found(run(f"model.model={one}", f"tuner.train_type={tuner}"))["coordinate rows"]
        assert finding.status == status
        assert f"boxloop init {one} --out DIR" in finding.reason


def failures(config: Config) -> dict[str, str]:
    return {name: finding.reason for name, finding in found(config).items() if finding.status == "fail"}


def test_a_good_run_passes_and_is_told_its_numbers(run) -> None:
    findings = found(run())
    names = [
        "packages",
        "metrics port",
        "checkpoint",
        "tokenizer",
        "coordinate rows",
        "training data",
        "lengths",
        "steps",
        "images",
        "validation data",
    ]
    assert list(findings) == names
    assert {finding.status for name, finding in findings.items() if name != "packages"} == {"pass"}
    assert "64 records" in findings["training data"].reason
    assert "8 records" in findings["validation data"].reason
    assert "+ 16 new ones of a server's 512" in findings["lengths"].reason
    assert "the first 64 can be decoded" in findings["images"].reason


@pytest.mark.parametrize("key", ["train_jsonl", "val_jsonl"])
def test_a_prompt_with_classes_and_records_without_are_told_with_line_and_cure(run, shapes: Path, key: str) -> None:
    asking = shapes / "asking.jsonl"
    lines = [orjson.loads(line) for line in (shapes / "train.jsonl").read_bytes().splitlines()]
    asking.write_bytes(b"\n".join(orjson.dumps({**line, "classes": ["a red circle"]}) for line in lines))
    whole = {f"custom.{each}": asking for each in ("train_jsonl", "val_jsonl")}
    overrides = ["custom.user_prompt=Find {classes}.", *(f"{name}={path}" for name, path in whole.items())]
    try:
        assert failures(run(*overrides)) == {}
        (told,) = failures(run(*overrides, f"custom.{key}={shapes / 'train.jsonl'}")).values()
    finally:
        asking.unlink()
    assert f"{shapes / 'train.jsonl'}:1: custom.user_prompt has {{classes}} and the record has none; give" in told


def test_a_line_that_breaks_the_contract_is_named(run, shapes: Path, tmp_path: Path) -> None:
    lines = (shapes / "train.jsonl").read_bytes().splitlines()
    record = orjson.loads(lines[40])
    record["objects"][0]["bbox_2d"] = [30, 2, 30, 4]
    lines[40] = orjson.dumps({**record, "images": [str(shapes / record["images"][0])]})
    bad = shapes / "bad.jsonl"
    bad.write_bytes(b"\n".join(lines))
    try:
        told = failures(run(f"custom.train_jsonl={bad}"))
        assert list(told) == ["training data"]
        assert f"{bad}:41: object 0" in told["training data"]
        skipping = found(run(f"custom.train_jsonl={bad}", "custom.on_bad_record=skip"))["training data"]
        assert skipping.status == "pass"
        assert "63 records, 1 skipped, the first: " in skipping.reason
        assert list(failures(run(f"custom.val_jsonl={bad}"))) == ["validation data"]
    finally:
        bad.unlink()


def test_an_image_that_is_not_there_is_named(run, shapes: Path, tmp_path: Path) -> None:
    shutil.copy(shapes / "train.jsonl", tmp_path / "train.jsonl")
    told = failures(run(f"custom.train_jsonl={tmp_path / 'train.jsonl'}"))
    assert list(told) == ["images"]
    assert "train.jsonl:1: missing image file" in told["images"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("global_max_length=100", "raise it, or set custom.on_long_target: skip"),
        ("custom.extra.rollout_matching.max_new_tokens=500", "with 500 new ones it exceeds 512"),
    ],
)
def test_what_does_not_fit_is_told_with_both_numbers(run, override: str, said: str) -> None:
    told = failures(run(override))
    assert "lengths" in told
    assert said in told["lengths"]


def test_no_number_that_is_told_is_above_the_capacity_it_passes(run) -> None:
    """Answers whose quick bound is above the capacity are counted token by token."""
    told = found(run("global_max_length=270", "custom.on_long_target=skip"))["lengths"]
    assert told.status == "pass"
    (most,) = re.findall(r"with their answers at most (\d+) of 270", told.reason)
    assert 200 < int(most) <= 270


def test_a_validation_prompt_without_room_on_a_server_is_a_failure(run, shapes: Path) -> None:
    path = shapes / "wide.jsonl"
    Image.new("RGB", (512, 512)).save(shapes / "wide.png")
    path.write_text('{"images": ["wide.png"], "width": 512, "height": 512, "objects": []}')
    told = failures(run(f"custom.val_jsonl={path}", "custom.extra.rollout_matching.max_new_tokens=300"))
    assert list(told) == ["validation data"]
    assert "with 300 new ones it exceeds 512" in told["validation data"]


def test_coordinate_tokens_beyond_the_vocabulary_are_told(run, checkpoint: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    config = json.loads((cut / "config.json").read_text())
    config["text_config"]["vocab_size"] = 700
    (cut / "config.json").write_text(json.dumps(config))
    findings = found(run(f"model.model={cut}"))
    assert findings["tokenizer"].status == "fail"
    assert f"its vocabulary is 700; `boxloop init {cut} --out DIR`" in findings["tokenizer"].reason
    assert findings["training data"].status == "pass", "it is read without a tokenizer"
    assert "lengths" not in findings


def test_a_model_that_is_neither_folder_nor_hub_id_is_told(run) -> None:
    findings = found(run("model.model=no/such/folder"))
    assert findings["checkpoint"].status == "fail"
    assert {"training data", "images"} <= findings.keys(), "data are looked at all the same"
    assert "no whole checkpoint" in failures(run("training.resume_from_checkpoint=true"))["checkpoint"]


def test_a_hub_id_that_the_hub_does_not_confirm_is_a_failure(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing folder of two parts looks like one; what is not there fails, whatever it looks like."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    told = failures(run("model.model=nobody-at-all/never-fetched"))
    assert list(told) == ["checkpoint"]
    assert "nobody-at-all/never-fetched is no folder here, nor a hub id" in told["checkpoint"]


def test_a_hub_id_that_the_hub_knows_is_fetched_at_the_start(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.preflight.find_model", lambda model: None)
    monkeypatch.setattr("learner.preflight.folder_here", lambda model: None)
    findings = found(run("model.model=somebody/something"))
    assert (findings["checkpoint"].status, findings["tokenizer"].status) == ("pass", "warn")


def test_a_package_that_is_missing_is_told(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.reporting.trackers.is_installed", lambda module: False)
    assert "boxloop[tracking]" in failures(run("training.report_to=wandb"))["packages"]


def test_a_metrics_port_that_is_taken_is_a_failure(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = failures(run(f"training.metrics_port={port}"))
    assert list(told) == ["metrics port"]
    assert f"training.metrics_port: cannot listen on 127.0.0.1:{port}" in told["metrics port"]
    assert found(run(f"training.metrics_port={port}"))["metrics port"].reason == f"{port} is free"


def test_a_ready_server_passes_and_says_how_weights_reach_it(run, serving, scripted, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with serving(scripted(weights_root=tmp_path / "weights")) as running:
        findings = found(run(f"{SERVER}.server.servers=[{{base_url: '{running.url}'}}]"))
        assert findings[f"server {running.url}"].status == "pass"
        assert findings[f"weights of {running.url}"].status == "pass"


def test_health_without_a_weight_channel_is_a_failure(run, serving, scripted) -> None:
    """The classic hang: the probe is green, and the first publish never arrives."""
    with serving(scripted()) as running:
        told = failures(run(f"{SERVER}.server.servers=[{{base_url: '{running.url}'}}]"))
        assert list(told) == [f"weights of {running.url}"]
        assert "takes none by transport file" in told[f"weights of {running.url}"]


def test_a_server_with_another_token_is_a_failure(run, serving, scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(scripted(token="t" * 32)) as running:
        monkeypatch.setenv("BOXLOOP_TOKEN", "u" * 32)
        told = failures(run(f"{SERVER}.server.servers=[{{base_url: '{running.url}'}}]"))
        assert "401" in told[f"server {running.url}"]


def test_a_server_that_does_not_answer_is_a_failure(run) -> None:
    told = failures(run(f"{SERVER}.server.servers=[{{base_url: 'http://127.0.0.1:9'}}]"))
    assert list(told) == ["server http://127.0.0.1:9"]


def test_every_finding_is_a_line_of_json(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert run_preflight("learner.preflight", examine, "Check.", ["--config", str(tmp_path / "config.yaml")]) == 0
    findings = [Finding.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [finding.check for finding in findings if finding.status == "fail"] == ["training data"]
    assert (
        run_preflight(
            "learner.preflight", examine, "Check.", ["--config", str(tmp_path / "config.yaml"), "trainin.seed=1"]
        )
        == 2
    )
    assert Finding.model_validate_json(capsys.readouterr().out).check == "config"

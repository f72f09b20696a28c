"""What the doctor finds of a rollout server before it is started."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from rollout_server.preflight import examine
from shared.config.load import load_config
from shared.findings import Finding
from shared.preflight import run_preflight

VLLM = "custom.extra.rollout_matching.vllm"


@pytest.fixture
def config_file(checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    values = {
        "global_max_length": 512,
        "model": {"model": str(checkpoint)},
        "training": {"output_dir": str(tmp_path / "run")},
        "custom": {
            "trainer_variant": "stage2_ab_training",
            "train_jsonl": "train.jsonl",
            "extra": {
                "stage2_ab": {"schedule": {"pattern": ["B"]}},
                "rollout_matching": {
                    "rollout_backend": "hf",
                    "max_new_tokens": 64,
                    "vllm": {"sync": {"weights_root": str(tmp_path / "weights")}},
                },
            },
        },
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def found(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BOXLOOP_TOKEN", raising=False)

    def look(*overrides: str) -> dict[str, Finding]:
        return {finding.check: finding for finding in examine(load_config(config_file, overrides))}

    return look


def failures(findings: dict[str, Finding]) -> list[str]:
    return [name for name, finding in findings.items() if finding.status == "fail"]


def test_a_good_server_passes(found) -> None:
    assert {name: finding.status for name, finding in found().items()} == dict.fromkeys(
        ("engine", "server model", "token", "weights folder"), "pass"
    )


def test_an_engine_outside_its_window_is_told(found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout_server.engines.vllm.environment._installed_version", lambda: "0.99.1")
    backend = "custom.extra.rollout_matching.rollout_backend=vllm"
    assert "vLLM 0.99.1 is installed" in found(backend)["engine"].reason
    monkeypatch.setattr("rollout_server.engines.vllm.environment._installed_version", lambda: "0.31.0")
    assert found(backend)["engine"].reason == "vllm 0.31.0"


def test_more_positions_than_the_model_has_are_told(found) -> None:
    findings = found("global_max_length=99999")
    assert failures(findings) == ["server model"]
    assert "99999" in findings["server model"].reason


def test_a_checkpoint_of_another_kind_is_told(found, checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    del config["image_token_id"]
    (other / "config.json").write_text(json.dumps(config))
    reason = found(f"model.model={other}")["server model"].reason
    assert "lacks 'image_token_id', which a qwen3_vl checkpoint has" in reason
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    assert "is a llava checkpoint; give one of qwen3_vl" in found(f"model.model={other}")["server model"].reason


def test_an_open_address_needs_a_token(found, tmp_path: Path) -> None:
    assert failures(found(f"{VLLM}.server.host=0.0.0.0")) == ["token"]
    assert failures(found(f"{VLLM}.server.token_file={tmp_path / 'none'}")) == ["token"]
    (tmp_path / "token").write_text("t" * 32)
    assert failures(found(f"{VLLM}.server.host=0.0.0.0", f"{VLLM}.server.token_file={tmp_path / 'token'}")) == []


def test_folders_must_be_there_or_be_possible(found, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = found(
        f"{VLLM}.sync.weights_root={tmp_path / 'file' / 'w'}", f"{VLLM}.server.image_root={tmp_path / 'no'}"
    )
    assert failures(findings) == ["weights folder", "images"]


def test_every_finding_is_a_line_of_json(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_preflight("rollout_server.preflight", examine, "Check.", ["--config", str(config_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Finding.model_validate_json(line).status for line in lines] == ["pass"] * 4

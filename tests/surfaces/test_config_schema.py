"""Editors check a configuration by `docs/config.schema.json`: it takes what the loader takes, and no typo."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from shared.config.load import load_config
from shared.config.schema import config_schema

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
RUNS = [file for file in FILES if not file.endswith("base.yaml")]

SCHEMA = jsonschema_rs.validator_for(config_schema())


def complaints(content: object) -> list[str]:
    return [f"{'.'.join(map(str, error.instance_path))}: {error.message}" for error in SCHEMA.iter_errors(content)]


def nested(path: str, value: object) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def test_the_file_is_what_the_models_say() -> None:
    written = json.loads((ROOT / "docs" / "config.schema.json").read_text())
    assert written == config_schema(), "run: python -m shared.config.schema > docs/config.schema.json"


@pytest.mark.parametrize("file", FILES)
def test_every_shipped_file_is_valid_as_it_stands(file: str) -> None:
    assert complaints(yaml.safe_load((ROOT / file).read_text())) == []


@pytest.mark.parametrize("run", RUNS)
def test_every_resolved_run_is_valid(run: str) -> None:
    assert complaints(load_config(ROOT / run).model_dump(mode="json")) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.report_to", "tensorboard"),
        ("training.report_to", ["tensorboard", "wandb"]),
        ("training.eval_strategy", False),
        ("tuner.target_modules", "q_proj"),
        ("extends", ["a.yaml", "b.yaml"]),
        ("training.learning_rate", 1),
    ],
)
def test_what_the_loader_takes_is_taken(path: str, value: object) -> None:
    assert complaints(nested(path, value)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.learning_rat", 1.0),
        ("training.learning_rate", -1),
        ("training.report_to", ["mlflow"]),
        ("training.eval_strategy", True),
        ("custom.extra.stage2_ab.schedule.patern", ["A"]),
        ("custom.extra.rollout_matching.vllm.server.servers", [{"base_url": "127.0.0.1:8000"}]),
        ("global_max_length", "long"),
    ],
)
def test_what_the_loader_refuses_is_refused(path: str, value: object) -> None:
    assert len(complaints(nested(path, value))) == 1

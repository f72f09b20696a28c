"""A text or a path that a user gives arrives byte for byte, however it is written."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compose.arguments import parse_launch
from learner.checkpoints.export import main as export_main
from shared.config.load import load_config, save_resolved
from shared.config.models import Config
from shared.config.overrides import parse_overrides
from shared.config.paths import expanded
from shared.config.section import Section
from shared.errors import ConfigError

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)
PATHS = TEXTS.filter(lambda text: not text.startswith("~") and "$" not in text.partition("/")[0] and text.strip("/"))
TRAPS = ("exp #3", "a: b", "null", "true", "[x", "{y}", "'", '"', "*a", "&a", "!tag", "%", "- x", "1e3", "2024-13-45",
         "a\nb", "\x85", "\u2028", "\ufeff", " x ", "\t", "=", "a=b", "no", "\x7f", "日本", "a\\b")  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    values = {
        "global_max_length": 512,
        "model": {"model": "tiny"},
        "training": {"output_dir": "run"},
        "custom": {"trainer_variant": "stage1_sft", "train_jsonl": "a.jsonl"},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def traps(test):
    for trap in TRAPS:
        test = example(text=trap)(test)
    return test


@pytest.mark.slow
@pytest.mark.reported("hydra#2705 Detect all # carefully")
@traps
@given(text=TEXTS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_arrives_through_an_override_and_through_the_resolved_file(base: Path, text: str) -> None:
    config = load_config(base, [f"template.system={text}", "training.metric_for_best_model=eval_rollout_f1"])
    expected = None if text == "null" else text
    assert config.template.system == expected
    save_resolved(config, base.with_name("resolved.yaml"))
    assert load_config(base.with_name("resolved.yaml")) == config


@pytest.mark.slow
@pytest.mark.reported("hydra#2705 work/exp #3-checkpoint")
@traps
@given(text=PATHS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_path_arrives_through_overrides_options_and_the_resolved_file(base: Path, text: str) -> None:
    config = load_config(base, [f"model.model={text}", f"training.output_dir={text}", f"custom.train_jsonl={text}"])
    assert config.model.model == text
    assert config.training.output_dir == config.custom.train_jsonl == Path(text)
    launch = parse_launch([f"config={base}"], [("model.model", Path(text)), ("training.output_dir", Path(text))])
    evaluated = load_config(launch.config, launch.overrides)
    assert evaluated.model.model == str(Path(text))
    save_resolved(config, base.with_name("resolved.yaml"))
    assert load_config(base.with_name("resolved.yaml")) == config


@pytest.mark.reported("template.system=")
def test_an_empty_text_is_one(base: Path) -> None:
    assert load_config(base, ["template.system="]).template.system == ""
    assert load_config(base, ["custom.user_prompt=Detect all # carefully"]).custom.user_prompt == (
        "Detect all # carefully"
    )


def test_keys_that_are_no_texts_are_yaml_still() -> None:
    values = parse_overrides(["training.max_steps=10 # ten", "tuner.target_modules=[q_proj, k_proj]"]).values
    assert values == {"training": {"max_steps": 10}, "tuner": {"target_modules": ["q_proj", "k_proj"]}}
    for word, value in (("true", True), ("null", None), ("runs/x #2", "runs/x #2")):
        override = f"training.resume_from_checkpoint={word}"
        assert parse_overrides([override]).values == {"training": {"resume_from_checkpoint": value}}


@pytest.mark.reported("transformers#10628 ~/x")
@pytest.mark.parametrize("key", ["training.output_dir", "custom.train_jsonl", "model.model"])
def test_a_home_is_expanded_wherever_a_path_is_read(base: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    section, _, name = key.partition(".")
    for config in (load_config(base, [f"{key}=~/x"]), load_config(with_value(base, section, name, "~/x"))):
        assert str(getattr(getattr(config, section), name)) == "/home/somebody/x"


def with_value(base: Path, section: str, name: str, value: str) -> Path:
    values = yaml.safe_load(base.read_text())
    values[section][name] = value
    path = base.with_name("other.yaml")
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.reported("transformers#10628 ${HOME}/x")
@pytest.mark.parametrize("text", ["${HOME}/runs/x", "$HOME/runs", "${MODELS}"])
def test_a_variable_is_refused_and_not_made_a_folder(base: Path, text: str) -> None:
    for config in (
        lambda: load_config(base, [f"training.output_dir={text}"]),
        lambda: parse_launch([f"config={text}"]),
    ):
        with pytest.raises((ConfigError, ValueError), match="is not expanded here"):
            config()


def test_a_folder_that_is_named_like_a_variable_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$odd").mkdir()
    assert expanded("$odd/x") == "$odd/x"


@pytest.mark.slow
def test_other_programs_expand_a_home_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert export_main(["~/none", "--out", "~/out"]) == 2
    assert "/home/somebody/none" in capsys.readouterr().out


@pytest.mark.reported("top_p 1e-300")
def test_values_that_no_type_of_the_machine_holds_are_refused(base: Path) -> None:
    wide = [
        "training.learning_rate=1.0e-60",
        "custom.extra.stage2_ab.softctx_temperature=1.0e-30",
        "custom.extra.stage2_ab.bbox_l1_weight=1.0e+300",
        "custom.extra.rollout_matching.top_p=1.0e-300",
        "custom.extra.rollout_matching.top_k=5000000000",
        "custom.extra.rollout_matching.max_new_tokens=5000000000",
        "custom.extra.rollout_matching.repetition_penalty=1.0e-30",
        "training.seed=99999999999999999999999",
        "global_max_length=99999999999999999999999",
    ]
    for override in wide:
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            load_config(base, [override])


def test_every_number_that_is_accepted_is_one_in_32_bits(base: Path) -> None:
    import numpy as np

    def floats(section: object) -> list[float]:
        found = []
        for value in section.__dict__.values():
            if isinstance(value, float):
                found.append(value)
            elif isinstance(value, Section):
                found += floats(value)
        return found

    config: Config = load_config(base)
    assert all(np.isfinite(np.float32(value)) and bool(np.float32(value)) == bool(value) for value in floats(config))

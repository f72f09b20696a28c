"""What `boxloop predict` makes of a checkpoint and a few words."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from compose.cli import main
from compose.launch_plan import plan_launch
from compose.predict import Wish, launch_of, model_folder, run_predict, work_of
from shared.checkpoint_usage import CheckpointUsage, save_usage
from shared.config.models import Config
from shared.errors import ConfigError, DataError
from shared.wire import RepeatTerminate

USAGE = CheckpointUsage(
    system="",
    user_prompt="null",
    object_ordering="random",
    min_pixels=None,
    max_pixels=4096,
    stop_tokens=("<|im_end|>",),
    max_model_len=777,
    max_new_tokens=99,
    repetition_penalty=1.2,
    repeat_terminate=RepeatTerminate(max_object_keys=40),
)


def config_of(model: Path, usage: CheckpointUsage | None, out: Path, **wish: object) -> Config:
    asked = Wish(out.parent, str(model), **wish)  # type: ignore[arg-type]
    plan = plan_launch(launch_of(asked, model, usage, out), work_of(asked, model, out))
    assert plan.resolved == out / "logs" / "config.predict.yaml"
    return plan.config


def test_the_checkpoint_says_what_a_configuration_would(tmp_path: Path) -> None:
    config = config_of(tmp_path, USAGE, tmp_path / "out", engine="vllm")
    assert (config.template.system, config.custom.user_prompt) == ("", "null")
    assert (config.template.min_pixels, config.template.max_pixels) == (None, 4096)
    assert config.custom.object_ordering == "random"
    assert (config.max_model_len, config.rollout.max_new_tokens) == (777, 99)
    assert config.rollout.repetition_penalty == 1.2
    assert config.rollout.repeat_terminate.rule == USAGE.repeat_terminate
    assert config.rollout.rollout_backend == "vllm"
    assert (config.decodes, config.tuner.train_type) == (True, "full")


def test_one_that_says_nothing_is_asked_as_by_default_within_its_positions(tmp_path: Path) -> None:
    out, processor = tmp_path / "out", tmp_path / "preprocessor_config.json"
    processor.write_text('{"size": {"longest_edge": 16777216}}')
    config = config_of(tmp_path, None, out)
    assert (config.max_model_len, config.template.max_pixels) == (4096, 1048576)
    processor.write_text('{"size": {"longest_edge": 262144}}')
    assert config_of(tmp_path, None, out).template.max_pixels is None
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 512}}')
    config = config_of(tmp_path, None, out)
    assert (config.max_model_len, config.rollout.max_new_tokens) == (512, 256)
    assert (config.template.system, config.custom.user_prompt) == (None, None)


def test_adapters_are_merged_by_the_process_that_asks(tmp_path: Path) -> None:
    wish = Wish(tmp_path, "model", classes="a,b", is_plain=True)
    assert not work_of(wish, tmp_path, tmp_path / "out").learns
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path}"}}')
    work = work_of(wish, tmp_path, tmp_path / "out")
    assert work.learns
    assert not work.trains
    assert work.arguments[-3:] == ("--classes", "a,b", "--plain")
    assert config_of(tmp_path, USAGE, tmp_path / "out").tuner.train_type == "lora"


def test_a_checkpoint_without_the_file_is_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compose.predict.run_supervised", lambda *_, **__: 0)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    told = []
    for usage in (None, USAGE):
        if usage is not None:
            save_usage(usage, tmp_path)
        console = Console(file=io.StringIO(), width=80)
        assert run_predict(Wish(tmp_path, str(tmp_path), tmp_path / "out"), console) == 0
        assert isinstance(console.file, io.StringIO)
        told.append(console.file.getvalue())
    assert told[0].count("warning: ") == 1
    assert f"{tmp_path} has no boxloop.json: it is asked with the built-in prompt" in told[0]
    assert told[1] == ""


def test_a_broken_file_ends_it_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "boxloop.json").write_text('{"version": 9}')
    with pytest.raises(DataError, match=r"boxloop\.json is of version 9.*upgrade Boxloop"):
        run_predict(Wish(tmp_path, str(tmp_path), tmp_path / "out"), Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


def test_a_model_is_a_folder_or_could_be_a_hub_id(tmp_path: Path) -> None:
    assert model_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ConfigError, match=r"--model .*/none is no folder, and no hub id"):
        model_folder(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing argument"),
        (("FOLDER",), "Missing option"),
        (("FOLDER/none.jpg", "--model", "FOLDER"), "none.jpg is not there"),
        (("FOLDER", "--model", "FOLDER/none"), "is no folder, and no hub id"),
        (("FOLDER", "--model", "FOLDER", "--engine", "tpu"), "--engine tpu is unknown; use hf or vllm"),
        (("FOLDER", "--model", "FOLDER", "--out", "FOLDER"), "holds something already"),
    ],
)
def test_wrong_arguments_end_with_2(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_usage(USAGE, tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["boxloop", "predict", *(word.replace("FOLDER", str(tmp_path)) for word in arguments)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.replace("\n", " ")

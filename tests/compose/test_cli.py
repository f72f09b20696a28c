import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compose.arguments import parse_launch
from compose.cli import CALIBRATED_METRICS, app, main
from shared.errors import ConfigError

CONFIG = """
global_max_length: 2048
model: {{model: tiny}}
training: {{output_dir: {run}}}
custom:
  trainer_variant: stage2_ab_training
  train_jsonl: none.jsonl
  extra: {{stage2_ab: {{schedule: {{pattern: [A]}}}}}}
"""


def test_up_tells_its_own_keys_from_overrides() -> None:
    launch = parse_launch(
        ["config=a.yaml", "server_gpus=0,1,2", "train_gpus=", "server_tp=1", "disable_proxy=false", "training.seed=3"]
    )
    assert launch.config == Path("a.yaml")
    assert launch.server_gpus == ("0", "1", "2")
    assert launch.train_gpus == ()
    assert launch.server_tp == 1
    assert launch.disable_proxy is False
    assert launch.overrides == ("training.seed=3",)


def test_up_without_a_config_says_what_to_write() -> None:
    with pytest.raises(ConfigError, match="config=FILE"):
        parse_launch(["server_gpus=0"])


def test_every_goal_of_a_calibration_is_an_option() -> None:
    from learner.evaluation.calibration import GOALS

    assert tuple(GOALS) == CALIBRATED_METRICS


def test_every_wrong_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"server_port=x.*wait_timeout=y"):
        parse_launch(["config=a", "server_port=x", "wait_timeout=y"])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("server_port=70000", "server_port=70000: .* less than or equal to 65535"),
        ("server_port=-1", "server_port=-1: .* greater than or equal to 0"),
        ("wait_interval=-1", "wait_interval=-1"),
        ("wait_timeout=nan", "wait_timeout=nan"),
        ("wait_timeout=inf", "wait_timeout=inf"),
        ("max_restarts=-3", "max_restarts=-3"),
        ("server_gpus=0,1,0", "server_gpus=.*: .*0 stands there more than once"),
        ("train_gpus=0,1", "train_gpus=.*at most 1 item"),
    ],
)
def test_what_no_launch_can_be_is_refused(argument: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_launch(["config=a.yaml", argument])


def test_both_may_share_a_gpu() -> None:
    launch = parse_launch(["config=a.yaml", "server_gpus=0", "train_gpus=0"])
    assert launch.server_gpus == launch.train_gpus == ("0",)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("sever_gpus=0", "server_gpus"),
        ("server_gpu=0", "server_gpus"),
        ("vllm_gpu_memory_utilisation=.5", "vllm_gpu_memory_utilization"),
        ("trainin=1", "training"),
        ("global_max_len=9", "global_max_length"),
        ("seed=3", "training.seed"),
    ],
)
def test_a_typo_gets_the_nearest_key_of_launch_and_config(typo: str, meant: str) -> None:
    key = typo.partition("=")[0]
    with pytest.raises(ConfigError, match=f"^{key}: unknown key; did you mean `{meant}`.; wait_time: "):
        parse_launch(["config=a.yaml", typo, "wait_time=3"])


def test_options_go_before_arguments() -> None:
    launch = parse_launch(["config=a.yaml", "server_port=1", "server_gpus=0"], server_port="2", server_gpus=None)
    assert (launch.server_port, launch.server_gpus) == (2, ("0",))


@pytest.mark.parametrize(
    "command",
    [
        ("up", "config=CONFIG", "server_port=70000"),
        ("up", "config=CONFIG", "server_port=65535", "server_gpus=0,1"),
        ("up", "config=CONFIG", "sever_gpus=0"),
        ("doctor", "config=CONFIG", "server_port=70000"),
        ("doctor", "--config", "CONFIG", "--server-port", "-1"),
        ("doctor", "server_gpus=0"),
        ("serve", "--config", "CONFIG", "--port", "70000", "--gpus", "0"),
        ("eval", "--config", "CONFIG"),
        ("eval", "--config", "CONFIG", "server_port=70000"),
        ("calibrate", "--config", "CONFIG"),
        ("calibrate", "--config", "CONFIG", "--metric", "eval_coco_ap"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_end_with_2_before_anything_starts(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(run=tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["boxloop", *(word.replace("CONFIG", str(config)) for word in command)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert not (tmp_path / "run").exists()
    told = capsys.readouterr().err
    if "server_port=70000" in command:
        assert "server_port=70000" in told
    elif "eval_coco_ap" in command:
        assert "--metric eval_coco_ap cannot be calibrated for; use eval_rollout_f1_iou50," in told
    elif command[0] in ("eval", "calibrate"):
        assert f"{config}: 1 problem" in told
        assert "custom.val_jsonl: evaluation needs it" in told


@pytest.mark.parametrize("command", ["up", "serve", "train", "eval", "calibrate", "doctor"])
@pytest.mark.parametrize("spelling", [["config={}"], ["--config", "{}"]])
def test_a_configuration_is_named_alike_everywhere(command: str, spelling: list[str], tmp_path: Path) -> None:
    """A key that is unknown is told of the file, so it was found and read before anything starts."""
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG.format(run=tmp_path / "run") + "nonsense: 1\n")
    arguments = [command, *(part.format(config) for part in spelling)]
    result = CliRunner().invoke(app, [*arguments, "--gpus", ""] if command == "serve" else arguments)
    if isinstance(result.exception, ConfigError):
        assert f"{config}: 1 problem" in str(result.exception)
    else:
        assert (command, result.exit_code) == ("doctor", 1)
        assert "nonsense: unknown key" in result.output


@pytest.mark.parametrize("command", [["train"], ["serve"], ["up"], ["eval"]])
def test_no_configuration_is_one_message(command: list[str]) -> None:
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ConfigError)
    assert "config=FILE is missing" in str(result.exception)


def test_the_version_and_the_short_help() -> None:
    version = CliRunner().invoke(app, ["--version"])
    assert (version.exit_code, version.output) == (0, f"boxloop {importlib.metadata.version('boxloop')}\n")
    for command in ([], ["up"], ["data"]):
        assert "Usage" in CliRunner().invoke(app, [*command, "-h"]).output


@pytest.mark.slow
def test_help_loads_no_model_library() -> None:
    code = "import sys, compose.cli; print(sorted({'torch', 'transformers', 'numpy', 'fastapi'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    "command",
    ["up", "serve", "train", "eval", "calibrate", "predict", "doctor", "report", "demo", "data", "init", "export"],
)
@pytest.mark.slow
def test_every_command_explains_itself(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "compose", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage" in done.stdout.lower()


@pytest.mark.slow
def test_an_error_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "compose", "up", f"config={tmp_path / 'none.yaml'}"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "none.yaml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.reported("eval --checkpoint missing")
def test_a_checkpoint_that_is_no_folder_is_told_at_once(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("global_max_length: 9")
    result = CliRunner().invoke(app, ["eval", "--config", str(config), "--checkpoint", str(tmp_path / "missing #1")])
    assert isinstance(result.exception, ConfigError)
    assert "missing #1 is no folder" in str(result.exception)


@pytest.mark.reported("export --help")
@pytest.mark.parametrize("command", ["init", "export"])
def test_commands_on_checkpoints_say_what_they_take_without_torch(command: str) -> None:
    program = (
        f"import sys, learner.checkpoints.{command}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

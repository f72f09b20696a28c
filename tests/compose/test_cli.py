import subprocess
import sys
from pathlib import Path

import pytest

from compose.cli import parse_launch
from shared.errors import ConfigError


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


def test_every_wrong_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"server_port=x.*wait_timeout=y"):
        parse_launch(["config=a", "server_port=x", "wait_timeout=y"])


def test_help_loads_no_model_library() -> None:
    code = "import sys, compose.cli; print(sorted({'torch', 'transformers', 'numpy', 'fastapi'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("command", ["up", "serve", "train", "eval", "doctor", "report", "demo", "data", "export"])
def test_every_command_explains_itself(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "compose", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage" in done.stdout.lower()


def test_an_error_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "compose", "up", f"config={tmp_path / 'none.yaml'}"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "none.yaml" in done.stderr
    assert "Traceback" not in done.stderr

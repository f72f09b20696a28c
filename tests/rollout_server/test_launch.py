import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from rollout_server.launch import settings_from
from shared.access import TOKEN_VARIABLE
from shared.config.load import load_config
from tests.weights_folder import weights_of

LONG = "t" * 32


NO_OPTIONS = argparse.Namespace(
    host=None, port=0, model=None, engine=None, script=None, token_file=None, image_root=None, weights_root=None
)


def test_settings_come_from_the_configuration_and_the_command_line_goes_first(config_file: Path) -> None:
    config = load_config(config_file, ["custom.extra.rollout_matching.vllm.max_num_seqs=5", "template.max_pixels=4096"])
    settings = settings_from(config, NO_OPTIONS)
    assert (settings.engine, settings.limits.max_model_len, settings.limits.max_num_seqs) == ("hf", 300, 5)
    assert (settings.max_pixels, settings.min_pixels) == (4096, None)
    assert settings.weights_root == weights_of(config)
    given = argparse.Namespace(**{**vars(NO_OPTIONS), "engine": "scripted", "weights_root": Path("/w"), "model": "m"})
    settings = settings_from(config, given)
    assert (settings.engine, settings.weights_root, settings.model) == ("scripted", Path("/w"), "m")


def test_every_engine_key_reaches_the_settings(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, LONG)
    vllm = {"gpu_memory_utilization": 0.4, "tensor_parallel_size": 2, "enforce_eager": True, "max_model_len": 200}
    server = {"host": "0.0.0.0", "stall_timeout_s": 9.0, "image_root": "/images"}
    config = load_config(
        config_file,
        [
            *(f"custom.extra.rollout_matching.vllm.{key}={value}" for key, value in vllm.items()),
            *(f"custom.extra.rollout_matching.vllm.server.{key}={value}" for key, value in server.items()),
            "custom.extra.rollout_matching.rollout_backend=vllm",
            "model.dtype=bfloat16",
            "model.attn_impl=eager",
            "template.min_pixels=4096",
        ],
    )
    settings = settings_from(config, NO_OPTIONS)
    assert (settings.engine, settings.dtype, settings.attn_impl, settings.min_pixels) == (
        "vllm", "bfloat16", "eager", 4096,
    )  # fmt: skip
    assert (settings.gpu_memory_utilization, settings.tensor_parallel_size, settings.enforce_eager) == (0.4, 2, True)
    assert settings.limits.max_model_len == 200
    assert (settings.host, settings.stall_timeout_s, settings.image_root) == ("0.0.0.0", 9.0, Path("/images"))


def test_two_runs_do_not_share_a_weights_root_unless_they_are_told_to(config_file: Path) -> None:
    key = "custom.extra.rollout_matching.vllm.sync.weights_root=/given"
    runs = [load_config(config_file, [f"training.output_dir=out{name}"]) for name in ("1", "1", "2")]
    roots = [weights_of(run) for run in runs]
    assert roots[0] == roots[1] != roots[2]
    assert weights_of(load_config(config_file, [key])) == Path("/given")


class Process:
    """`python -m rollout_server`, with its output read as it comes."""

    def __init__(self, config_file: Path, *arguments: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "rollout_server", "--config", str(config_file), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, TOKEN_VARIABLE: "", "OMP_NUM_THREADS": "1"},
        )

    def wait_for(self, word: str) -> str:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if word in line:
                return line.strip()
        raise AssertionError(f"ended without {word!r}: {self.popen.communicate()[1]}")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["listening", "ready"])
def test_a_signal_ends_the_process_at_once_whatever_it_is_doing(
    config_file: Path, number: signal.Signals, code: int, moment: str
) -> None:
    process = Process(config_file)
    url = "http://" + process.wait_for("listening").split()[-1]
    if moment == "ready":
        process.wait_for("ready")
        assert httpx.get(f"{url}/ready/", trust_env=False).status_code == 200
    else:
        time.sleep(1.0)
    started = time.monotonic()
    process.popen.send_signal(number)
    assert process.popen.wait(10) == code
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_signal_cuts_open_streams_so_that_clients_ask_elsewhere_at_once(
    config_file: Path, tmp_path: Path, prompts
) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"faults": {"h": "hang"}}')
    process = Process(config_file, "--engine", "scripted", "--script", str(script))
    url = "http://" + process.wait_for("listening").split()[-1]
    process.wait_for("ready")
    body = prompts.batch("h").model_dump_json()
    with httpx.stream("POST", f"{url}/rollouts", content=body, trust_env=False) as response:
        lines = response.iter_lines()
        assert "header" in next(lines)
        process.popen.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert process.popen.wait(2) == 143
    assert "Traceback" not in process.popen.communicate()[1]


@pytest.mark.slow
def test_a_dead_engine_answers_its_streams_and_probes_and_then_ends_the_process(
    config_file: Path, tmp_path: Path, prompts
) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"faults": {"b": "die"}, "delays": {"b": 0.2}}')
    process = Process(config_file, "--engine", "scripted", "--script", str(script))
    url = "http://" + process.wait_for("listening").split()[-1]
    process.wait_for("ready")
    body = prompts.batch("a", "b", "c").model_dump_json()
    lines = [json.loads(line) for line in httpx.post(f"{url}/rollouts", content=body, trust_env=False).iter_lines()]
    assert {line["uid"]: line["type"] for line in lines if "uid" in line} == {
        "a": "sample",
        "b": "error",
        "c": "sample",
    }
    assert lines[-1]["type"] == "footer"
    health = httpx.get(f"{url}/health/", trust_env=False)
    assert health.status_code == 503
    assert "the engine died, says the script" in health.text
    assert process.popen.wait(5) == 1
    assert "EngineFailed: the engine died, says the script" in process.popen.communicate()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--model", "/nowhere"), 2, "/nowhere"),
        (("--host", "0.0.0.0"), 2, "32 bytes"),
        (("global_max_len=3",), 2, "global_max_length"),
        (("--port", "70000"), 2, "'70000' is no port: give a number from 0 to 65535"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    config_file: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    process = Process(config_file, *arguments)
    error = process.popen.communicate(timeout=60)[1]
    assert process.popen.returncode == code
    assert words in error
    assert "Traceback" not in error

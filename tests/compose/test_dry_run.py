"""A dry run tells what would happen and does none of it."""

import re
from pathlib import Path

import pytest

from compose.arguments import parse_launch
from compose.cli import main
from compose.dry_run import dry_run
from compose.launch_plan import Work, plan_launch

ROOT = Path(__file__).parents[2]
CONFIG = f"config={ROOT}/configs/stage2_ab/prod/ab_mixed.yaml"


def text_of(*arguments: str) -> str:
    return dry_run(plan_launch(parse_launch(arguments), Work()))


@pytest.mark.parametrize(
    ("server_gpus", "train_gpus"), [("0,1,2", "3"), ("0,1,2,3,4,5,6", "7"), ("0", "1"), ("0", "0")]
)
def test_each_topology_gets_its_servers_and_cards(server_gpus: str, train_gpus: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = text_of(CONFIG, f"server_gpus={server_gpus}", f"train_gpus={train_gpus}", "server_port=0")
    assert re.findall(r"CUDA_VISIBLE_DEVICES=(.*)", text) == [*server_gpus.split(","), train_gpus]
    assert len(set(re.findall(r"-m rollout_server .* --port (\d+)", text))) == len(server_gpus.split(","))
    assert text.count("http://127.0.0.1:") == len(server_gpus.split(","))
    assert list(tmp_path.iterdir()) == []


def test_without_cards_there_is_one_server_on_the_cpu(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    text = text_of(CONFIG, "server_port=0")
    assert text.count("-m rollout_server") == text.count("-m learner") == 1
    assert "OMP_NUM_THREADS=" in text


def test_each_value_stands_beside_its_origin(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    lines = text_of(CONFIG, "server_port=0", "training.seed=7", "vllm_gpu_memory_utilization=0.75").splitlines()
    origin = {line.split(": ")[0]: re.split(r"  +# ", line)[-1] for line in lines if re.match(r"[\w.]+: ", line)}
    assert (
        origin["training.seed"] == origin["custom.extra.rollout_matching.vllm.gpu_memory_utilization"] == "command line"
    )
    assert origin["custom.extra.stage2_ab.schedule.pattern"].endswith("ab_mixed.yaml:12")
    assert origin["tuner.lora_rank"] == "default"
    assert len(origin) > 100


def test_the_first_steps_say_which_weights_decode(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    ahead = "custom.extra.rollout_matching.max_lag=2"
    for overrides, weights in ([], ["2", "5", "8"]), ([ahead], ["0", "3", "6"]):
        assert (
            re.findall(r"rollouts of the weights of step (\d+)", text_of(CONFIG, "server_port=0", *overrides))
            == weights
        )


def test_the_command_prints_no_token(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOXLOOP_TOKEN", "s" * 40)
    monkeypatch.setattr("sys.argv", ["boxloop", "up", "--dry-run", CONFIG, "server_port=0"])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr().out
    assert end.value.code in (0, None)
    assert "BOXLOOP_TOKEN=a random token" in printed
    assert "s" * 40 not in printed

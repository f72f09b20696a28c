"""Whether there is room for a run, from made-up machines and real headers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from compose.launch_plan import Launch
from compose.machine import Gpu, Machine, TorchView, parse_gpus, this_machine, torch_view
from compose.machine_checks import machine_findings
from compose.model_size import ModelSize, model_size
from shared.config.load import load_config
from shared.config.models import Config
from shared.errors import ConfigError
from shared.findings import Finding

GIB = 2**30
LARGE = Machine(
    gpus=tuple(Gpu(str(index), f"GPU-{index}", "H100", 80 * GIB, GIB) for index in range(2)),
    memory_bytes=500 * GIB,
    shared_memory_bytes=200 * GIB,
    disk_bytes=2000 * GIB,
    proxies=(),
)
FOUR_B = ModelSize(num_parameters=4 * 10**9, num_bytes=8 * 10**9, num_sides=3 * 10**6)
ROLLOUT = "custom.extra.rollout_matching"


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., Config]:
    path = tmp_path / "config.yaml"
    values = {
        "global_max_length": 4096,
        "model": {"model": "owner/name"},
        "training": {"output_dir": str(tmp_path / "run"), "save_total_limit": 2},
        "custom": {
            "trainer_variant": "stage2_ab_training",
            "train_jsonl": "train.jsonl",
            "extra": {"stage2_ab": {"schedule": {"pattern": ["A", "B"]}}},
        },
    }
    path.write_text(yaml.safe_dump(values))
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture
def found(config_of: Callable[..., Config]) -> Callable[..., dict[str, Finding]]:
    """Findings by name, of a 4 B model on two large GPUs unless told otherwise."""

    def look(
        *overrides: str,
        machine: Machine = LARGE,
        size: ModelSize | None = FOUR_B,
        server_gpus: tuple[str, ...] = ("0",),
        train_gpus: tuple[str, ...] = ("1",),
        disable_proxy: bool = True,
    ) -> dict[str, Finding]:
        launch = Launch(Path("c.yaml"), server_gpus=server_gpus, train_gpus=train_gpus, disable_proxy=disable_proxy)
        findings = list(machine_findings(config_of(*overrides), launch, size, machine))
        assert len({finding.check for finding in findings}) == len(findings)
        return {finding.check: finding for finding in findings}

    return look


def statuses(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.status for name, finding in findings.items()}


def test_a_large_machine_passes_every_check(found) -> None:
    assert statuses(found()) == dict.fromkeys(
        ("gpus", "gpu 0, server", "gpu 1, learner", "shared memory", "disk", "proxies"), "pass"
    )


def test_a_gpu_that_is_not_there_fails_and_says_which_are(found) -> None:
    finding = found(train_gpus=("7",))["gpus"]
    assert (finding.status, finding.reason) == ("fail", "7 asked for, there are 0, 1")


def test_a_gpu_may_be_named_by_its_uuid(found) -> None:
    assert found(server_gpus=("GPU-0",))["gpu 0, server"].status == "pass"


def test_without_a_list_of_gpus_it_is_told_what_the_driver_and_torch_say(found) -> None:
    blind = replace(LARGE, gpus=None, driver="there is no nvidia-smi", torch=TorchView(0, "torch 2.13.0+cpu"))
    finding = found(machine=blind)["gpus"]
    assert finding.status == "fail"
    assert "there is no nvidia-smi; torch 2.13.0+cpu sees 0 of them" in finding.reason
    assert found(machine=replace(blind, torch=TorchView(2, "torch 2.13.0")))["gpus"].status == "pass"


def test_gpus_that_torch_cannot_use_are_a_failure(found) -> None:
    finding = found(machine=replace(LARGE, torch=TorchView(0, "torch 2.13.0+cpu (built for the CPU alone)")))["gpus"]
    assert finding.status == "fail"
    assert "built for the CPU alone) can use 0 of them" in finding.reason


def test_torch_is_asked_for_the_gpus_that_are_named() -> None:
    view = torch_view(("0",))
    assert "torch 2" in view.told
    assert view.num_gpus == (1 if torch.cuda.is_available() else 0)


def test_what_another_process_holds_is_missing_for_a_server(found) -> None:
    full = replace(LARGE, gpus=(replace(LARGE.gpus[0], used_bytes=30 * GIB), LARGE.gpus[1]))
    finding = found(machine=full)["gpu 0, server"]
    assert finding.status == "fail"
    assert "72.0 GiB are asked for, 50.0 GiB are free" in finding.reason
    assert "vllm_gpu_memory_utilization" in finding.cure
    assert found(f"{ROLLOUT}.vllm.gpu_memory_utilization=0.5", machine=full)["gpu 0, server"].status == "pass"


def test_weights_that_do_not_fit_the_share_fail_unless_ranks_divide_them(found) -> None:
    huge = replace(FOUR_B, num_bytes=140 * 10**9)
    assert found(size=huge)["gpu 0, server"].status == "fail"
    two = found(f"{ROLLOUT}.vllm.tensor_parallel_size=2", size=huge, server_gpus=("0", "1"), train_gpus=())
    assert (two["gpu 0, server"].status, two["gpu 1, server"].status) == ("pass", "pass")


def test_one_gpu_for_both_leaves_the_learner_what_the_server_does_not_take(found) -> None:
    both = {"server_gpus": ("0",), "train_gpus": ("0",)}
    crowded = found(**both)["gpu 0, learner"]
    assert crowded.status == "warn"
    assert "7.0 GiB are free beside the server" in crowded.reason
    assert found(f"{ROLLOUT}.vllm.gpu_memory_utilization=0.15", **both)["gpu 0, learner"].status == "pass"
    adapters = found("tuner.train_type=lora", f"{ROLLOUT}.vllm.gpu_memory_utilization=0.7", **both)
    assert adapters["gpu 0, learner"].status == "pass"


def test_shared_memory_must_hold_what_is_published(found) -> None:
    """Of 4 B parameters: 14.9 GiB of float32 masters, or 7.5 GiB of a bfloat16 base and as much again, merged."""

    def status(num_gib: float, *overrides: str) -> str | None:
        finding = found(*overrides, machine=replace(LARGE, shared_memory_bytes=int(num_gib * GIB))).get("shared memory")
        return finding.status if finding else None

    adapters, by_http = "tuner.train_type=lora", f"{ROLLOUT}.vllm.sync.transport=http"
    assert (status(15), status(14)) == ("pass", "fail")
    assert (status(15, adapters), status(14, adapters), status(7, adapters)) == ("pass", "warn", "fail")
    assert (status(30, adapters, "model.dtype=float32"), status(14, adapters, "model.dtype=float32")) == (
        "pass",
        "fail",
    )
    assert (status(7.6, adapters, f"{ROLLOUT}.vllm.sync.mode=full"), status(29, by_http)) == ("pass", "fail")
    assert (status(30, by_http), status(22, by_http, adapters)) == ("pass", "warn")
    assert status(1, f"{ROLLOUT}.vllm.sync.weights_root=/data/weights") is None
    assert status(1, "custom.trainer_variant=stage1_sft") is None


def test_the_disk_must_hold_a_checkpoint_and_should_hold_those_that_are_kept(found) -> None:
    def status(num_gib: float, *overrides: str) -> str | None:
        finding = found(*overrides, machine=replace(LARGE, disk_bytes=int(num_gib * GIB))).get("disk")
        return finding.status if finding else None

    assert (status(150), status(50), status(40)) == ("pass", "warn", "fail")
    assert status(50, "training.save_only_model=true") == "pass"
    adapters = ("tuner.train_type=lora", "tuner.lora_rank=32")  # 96 M parameters, 1.1 GiB with their moments
    assert (status(3.5, *adapters), status(3, *adapters), status(1, *adapters)) == ("pass", "warn", "fail")
    assert status(1, *adapters, "training.save_only_model=true") == "warn"
    assert status(1, "training.save_strategy=no") is None


def test_main_memory_counts_for_what_runs_on_the_cpu(found) -> None:
    small = replace(LARGE, memory_bytes=32 * GIB)
    assert found(machine=small, server_gpus=(), train_gpus=())["memory"].status == "warn"
    assert "memory" not in found(machine=small)


def test_proxies_matter_only_when_they_are_not_hidden(found) -> None:
    proxied = replace(LARGE, proxies=("http_proxy",))
    assert found(machine=proxied)["proxies"].status == "pass"
    assert found(machine=proxied, disable_proxy=False)["proxies"].status == "warn"


def test_nvidia_smis_list_is_read() -> None:
    listing = "0, GPU-aa, NVIDIA H100 80GB HBM3, 81559, 512\n1, GPU-bb, NVIDIA GB10, [N/A], [N/A]\n"
    first, second = parse_gpus(listing)
    assert first == Gpu("0", "GPU-aa", "NVIDIA H100 80GB HBM3", 81559 * 2**20, 512 * 2**20)
    assert second.total_bytes == 0


def test_this_machine_has_some_room(tmp_path: Path) -> None:
    machine = this_machine(tmp_path / "not" / "yet", {"HTTPS_PROXY": "x", "no_proxy": "y", "HOME": "z"})
    assert machine.proxies == ("HTTPS_PROXY",)
    assert min(machine.memory_bytes, machine.disk_bytes) > 2**20


def test_a_models_size_is_read_from_its_headers(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, tmp_path / "model-1.safetensors")
    save_file({"c": np.zeros((2, 2), np.float32)}, tmp_path / "model-2.safetensors", metadata={"format": "pt"})
    assert model_size(str(tmp_path)) == ModelSize(12 + 5 + 4, 48 + 10 + 16, 3 + 4 + 2 + 2)
    assert model_size("owner/name") is None


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        model_size(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\x09")
    with pytest.raises(ConfigError, match="no whole safetensors file"):
        model_size(str(tmp_path))
    save_file({"a": np.zeros(100, np.float32)}, tmp_path / "model.safetensors")
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    with pytest.raises(ConfigError, match=r"no whole safetensors file.*399 bytes of tensors, its header lists 400"):
        model_size(str(tmp_path))

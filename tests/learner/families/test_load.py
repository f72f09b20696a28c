"""Loading: what the names in the configuration mean on a device."""

import shutil
from pathlib import Path

import pytest
import torch

from learner.families.load import attention_for, compute_dtype_for, load_model
from shared.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_masters_are_float32_whatever_is_computed_in(tiny_folder: Path) -> None:
    loaded = load_model(str(tiny_folder), dtype="bfloat16", device="cpu")
    assert loaded.compute_dtype is torch.bfloat16
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.layout == "rows"


def test_a_name_that_is_no_checkpoint_is_an_error_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model.model: 'no/such/model' is no folder"):
        load_model("no/such/model", device="cpu")


def test_weights_that_are_cut_off_are_an_error_with_the_key(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "cut")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ConfigError, match=f"model.model: {folder} cannot be loaded"):
        load_model(str(folder), device="cpu")


def test_an_unknown_dtype_is_an_error_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"model.dtype: got 'int8'; use auto or one of float32, bfloat16"):
        compute_dtype_for(torch.device("cpu"), "int8")


def test_a_named_attention_is_taken_as_it_is() -> None:
    assert attention_for(CPU, "sdpa", torch.float32) == "sdpa"
    assert attention_for(CPU, "auto", torch.bfloat16) == "matmul"
    assert attention_for(CUDA, "flash_attention_2", torch.bfloat16) == "flash_attention_2"


def test_flash_kernels_are_taken_for_16_bit_types_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    assert attention_for(CUDA, "auto", torch.bfloat16) == "varlen"
    assert attention_for(CUDA, "auto", torch.float32) == "sdpa"
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    assert attention_for(CUDA, "auto", torch.bfloat16) == "sdpa"


@pytest.mark.parametrize("name", ["varlen", "flash_attention_2"])
@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float32), ("cpu", torch.bfloat16)])
def test_a_named_attention_that_cannot_run_is_an_error_with_the_key(name: str, device: str, dtype: torch.dtype) -> None:
    with pytest.raises(
        ConfigError, match=rf"model.attn_impl: {name} runs in bfloat16 on a GPU, this is .* on a {device}"
    ):
        attention_for(torch.device(device), name, dtype)

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from learner.weight_sync.weight_file import save_weights
from shared.digest import file_digest

MIXED = {
    "narrow": torch.randn(3).bfloat16(),
    "wide": torch.randn(2, 5),
    "turned": torch.randn(4, 3).T,
    "half": torch.randn(7).half(),
    "one": torch.tensor(2.5),
    "part": torch.randn(6, 6)[:, 1:3],
}


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    saved = save_weights(tmp_path / "file", MIXED)
    held = load_file(tmp_path / "file")
    assert held.keys() == MIXED.keys()
    assert all(torch.equal(held[name], tensor) and held[name].dtype == tensor.dtype for name, tensor in MIXED.items())
    assert {spec.name: (spec.shape, spec.dtype, spec.num_bytes) for spec in saved.tensors} == {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes)
        for name, tensor in MIXED.items()
    }


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    saved = save_weights(tmp_path / "file", MIXED | {"large": torch.randn(1000, 1000)})
    assert saved.num_bytes == (tmp_path / "file").stat().st_size
    assert saved.digest == file_digest(tmp_path / "file")


def test_every_tensor_begins_at_a_multiple_of_its_items(tmp_path: Path) -> None:
    save_weights(tmp_path / "file", MIXED)
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert all(file.get_tensor(name).data_ptr() % MIXED[name].element_size() == 0 for name in MIXED)


def test_a_file_that_is_written_over_keeps_nothing(tmp_path: Path) -> None:
    save_weights(tmp_path / "file", MIXED)
    save_weights(tmp_path / "file", {"only": torch.ones(2)})
    assert load_file(tmp_path / "file").keys() == {"only"}


def test_a_full_disk_is_told() -> None:
    with pytest.raises(OSError, match="No space left"):
        save_weights(Path("/dev/full"), {"large": torch.randn(1000, 1000)})

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learner.weight_sync.file import FileOutlet
from shared.digest import file_digest
from shared.errors import WeightSyncFailed
from shared.wire import PolicyVersion

VERSION = PolicyVersion(incarnation="ab", step=4)


def test_a_file_holds_what_its_manifest_announces(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.randn(4, 3).T}
    update = FileOutlet().offer(tmp_path, tensors, VERSION, "full")
    manifest, held = update.manifest, load_file(update.written.file)
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items())
    assert [(each.name, each.shape, each.dtype, each.num_bytes) for each in manifest.tensors] == [
        ("a", (3, 4), "float32", 48),
        ("c", (3, 4), "float32", 48),  # before what is narrower
        ("b", (5,), "bfloat16", 10),
    ]
    assert manifest.num_bytes == update.written.file.stat().st_size
    assert manifest.digest == file_digest(update.written.file)
    assert tmp_path / str(manifest.folder) == update.written.file.parent
    update.drop()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told_with_its_size_and_the_cure(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(WeightSyncFailed, match=r"writing 48 bytes .*root failed: .*sync\.weights_root"):
        FileOutlet().offer(tmp_path / "root", {"a": torch.zeros(12)}, VERSION, "full")

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from rollout_server.engines.base import ModelTensors
from rollout_server.refusal import ManifestRefused
from rollout_server.weights.checks import file_mismatches, manifest_mismatches
from rollout_server.weights.file import shared_file
from shared.digest import file_digest
from shared.weight_wire import TensorSpec, WeightManifest
from shared.wire import PolicyVersion

MODEL = ModelTensors({"embed": (4, 2), "norm": (2,)}, tied={"head": "embed"})
ATTENTION = ModelTensors(
    dict.fromkeys(("q", "k", "v", "o"), (2, 2)), fused=(frozenset(("q", "k", "v")), frozenset(("gate", "up")))
)


def spec(name: str, *shape: int, dtype: str = "float32", num_bytes: int | None = None) -> TensorSpec:
    size = {"float32": 4, "bfloat16": 2}[dtype]
    return TensorSpec(
        name=name, shape=shape, dtype=dtype, num_bytes=int(np.prod(shape)) * size if num_bytes is None else num_bytes
    )


def manifest(*tensors: TensorSpec, data: bytes = b"", **fields: object) -> WeightManifest:
    plain = {
        "policy_version": PolicyVersion(incarnation="ab", step=1),
        "mode": "full",
        "transport": "file",
        "tensors": tensors or (spec("embed", 4, 2), spec("norm", 2)),
        "num_bytes": len(data),
        "digest": "",
        "folder": "v1",
    }
    return WeightManifest(**(plain | fields))


def mismatches(announced: WeightManifest) -> list[str]:
    return manifest_mismatches(announced, MODEL, ("file",))


@pytest.mark.parametrize(
    "tensors",
    [
        (spec("embed", 4, 2), spec("norm", 2)),
        (spec("embed", 4, 2, dtype="bfloat16"), spec("norm", 2, dtype="bfloat16")),
        (spec("embed", 4, 2), spec("norm", 2), spec("head", 4, 2)),
    ],
    ids=["float32", "bfloat16", "with the tied head"],
)
def test_a_manifest_of_the_whole_model_fits(tensors: tuple[TensorSpec, ...]) -> None:
    assert mismatches(manifest(*tensors)) == []


def test_every_mismatch_is_named_at_once() -> None:
    announced = manifest(spec("embed", 4, 3), spec("extra", 1), spec("head", 4, 2, num_bytes=9), transport="http")
    assert mismatches(announced) == [
        "transport http is not served here, only file",
        "norm is missing",
        "embed has shape [4, 3], the model [4, 2]",
        "extra is not in the model",
        "head of [4, 2] float32 cannot have 9 bytes",
    ]


def test_a_tensor_listed_twice_is_a_mismatch() -> None:
    assert mismatches(manifest(spec("embed", 4, 2), spec("norm", 2), spec("norm", 2))) == ["a tensor is listed twice"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("o", []),
        ("kqv", []),
        ("okqv", []),
        ("q", ["k is missing, the model keeps it fused with q", "v is missing, the model keeps it fused with q"]),
        ("vqo", ["k is missing, the model keeps it fused with q, v"]),
    ],
)
def test_a_merged_update_holds_fused_tensors_together_or_not_at_all(names: str, found: list[str]) -> None:
    announced = manifest(*(spec(name, 2, 2) for name in names), mode="merged")
    assert manifest_mismatches(announced, ATTENTION, ("file",)) == found


def test_a_merged_update_names_what_the_model_does_not_have() -> None:
    announced = manifest(spec("norm", 3), spec("extra", 1), mode="merged")
    assert mismatches(announced) == ["norm has shape [3], the model [2]", "extra is not in the model"]


@pytest.mark.parametrize("folder", ["../other", "/etc", "", None, "link"])
def test_a_folder_cannot_leave_the_weights_root(tmp_path: Path, folder: str | None) -> None:
    root = tmp_path / "weights"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ManifestRefused, match="not under"):
        shared_file(manifest(folder=folder), root)


DATA = save({"embed": np.ones((4, 2), np.float32), "norm": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    ("delivered", "tensors", "reason"),
    [
        (DATA, (), None),
        (None, (), "does not exist"),
        (DATA[:-1], (), "bytes, announced are"),
        (DATA[:-1] + b"x", (), "has digest"),
        (DATA, (spec("embed", 4, 2),), "norm is"),
        (DATA, (spec("embed", 2, 4), spec("norm", 2)), "embed is"),
        (DATA, (spec("embed", 4, 2), spec("norm", 4, dtype="bfloat16")), "norm is"),
    ],
    ids=["whole", "missing", "short", "corrupt", "one more", "another shape", "another dtype"],
)
def test_a_file_must_be_what_was_announced(
    tmp_path: Path, delivered: bytes | None, tensors: tuple[TensorSpec, ...], reason: str | None
) -> None:
    file = tmp_path / "weights.safetensors"
    if delivered is not None:
        file.write_bytes(delivered)
    whole = tmp_path / "whole"
    whole.write_bytes(DATA)
    found = file_mismatches(file, manifest(*tensors, data=DATA, digest=file_digest(whole)))
    assert (reason is None and found == []) or (len(found) == 1 and reason in found[0])


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, (5).to_bytes(8, "little") + b"[1,2]"])
def test_something_that_is_no_safetensors_file_is_a_mismatch(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(data)
    assert "not a safetensors file" in file_mismatches(file, manifest(data=data, digest=file_digest(file)))[0]

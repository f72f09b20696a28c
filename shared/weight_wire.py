"""Weights on their way to a rollout server, a transaction: `WeightManifest` (prepare), the data, `WeightCommit`.

The data is a file that both sides see, or the raw bodies of `PUT /weights/chunk?offset=`.
"""

from typing import Annotated, Literal

from pydantic import Field

from shared.wire import WIRE_VERSION, PolicyVersion, WireModel

WEIGHTS_FILE = "weights.safetensors"
"""File transport: the one file in a version's folder."""

Dtype = Literal["float32", "bfloat16", "float16"]
SyncMode = Literal["full", "merged"]
"""full: every tensor of the model. merged: some, over whole weights of the same incarnation."""

Transport = Literal["file", "http"]


class TensorSpec(WireModel):
    """One tensor under its name in the Hugging Face checkpoint."""

    name: str
    shape: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]
    dtype: Dtype
    num_bytes: int = Field(ge=0, lt=2**63)


class WeightManifest(WireModel):
    """Body of `POST /weights/prepare`: all that is about to be sent, before a byte of it is."""

    wire_version: int = WIRE_VERSION
    policy_version: PolicyVersion
    mode: SyncMode
    transport: Transport
    tensors: tuple[TensorSpec, ...] = Field(min_length=1)
    num_bytes: int = Field(ge=0, lt=2**63, description="size of the safetensors data")
    digest: str = Field(description="of the safetensors data: XXH3 of 128 bits, hexadecimal")
    folder: str | None = Field(default=None, description="file transport: folder under the server's --weights-root")


class WeightPrepared(WireModel):
    """The manifest fits the model; the data may be sent."""

    policy_version: PolicyVersion


class WeightRefused(WireModel):
    """Status 422: every way in which the manifest does not fit, at once."""

    mismatches: tuple[str, ...]


class WeightCommit(WireModel):
    """Body of `POST /weights/commit` and `POST /weights/abort`."""

    policy_version: PolicyVersion


class WeightCommitted(WireModel):
    """The new weights serve."""

    policy_version: PolicyVersion
    verify_s: float
    load_s: float
    canary_s: float


WeightPhase = Literal["serving", "staging", "loading", "tainted"]


class WeightStatus(WireModel):
    """Answer to `GET /weights`, to a chunk and to an abort."""

    phase: WeightPhase
    policy_version: PolicyVersion | None = Field(description="None = the checkpoint the server was started with")
    staged: PolicyVersion | None = None
    received_bytes: int = Field(default=0, description="http transport: the offset at which the next chunk goes on")

"""What every decoding engine offers to the server, and the objects that pass between them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared.errors import BoxloopError
from shared.wire import ComponentHealth, FinishReason, SampleErrorCode, Sampling


@dataclass(frozen=True)
class EngineRequest:
    """One answer to decode. `images` are encoded image files, one for each placeholder id in the prompt."""

    uid: str
    prompt_token_ids: tuple[int, ...]
    images: tuple[bytes, ...]
    sampling: Sampling
    seed: int = 0
    return_logprobs: bool = False


@dataclass(frozen=True)
class EngineAnswer:
    """A finished answer.

    `token_ids` ends with the stop id when `finish_reason` is "stop". `token_logprobs` are those of the model's own
    distribution, before penalty, bans, bias and temperature. `stop_margins` as on the wire. Times are
    `time.monotonic()`.
    """

    uid: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    image_grid: tuple[tuple[int, int, int], ...]
    token_logprobs: tuple[float, ...] | None
    started_at: float
    first_token_at: float
    finished_at: float
    stop_margins: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class EngineFailure:
    """One request that cannot be answered; the others go on."""

    uid: str
    code: SampleErrorCode
    message: str
    retryable: bool = False


EngineResult = EngineAnswer | EngineFailure


class SampleRejected(BoxloopError):
    """A request is found wrong before it is decoded."""

    def __init__(self, code: SampleErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: SampleErrorCode = code


def failure_of(request: EngineRequest, error: Exception) -> EngineFailure:
    """The answer to a request that cannot be decoded, whatever was wrong: one sample never ends a batch."""
    code: SampleErrorCode = error.code if isinstance(error, SampleRejected) else "engine_error"
    reason = str(error) if isinstance(error, SampleRejected) else f"{type(error).__name__}: {error}"
    return EngineFailure(request.uid, code, reason)


@dataclass(frozen=True)
class ModelTensors:
    """What a full update holds: shapes by checkpoint name.

    `tied` maps a name to the one it shares its values with. Each of `fused` are names that the engine keeps as one
    tensor: an update holds all of them or none.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str] = field(default_factory=dict)
    fused: tuple[frozenset[str], ...] = ()


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file on this machine."""

    path: Path


WeightSource = WeightFile
"""Where an engine loads weights from."""


@dataclass(frozen=True)
class EngineLoad:
    """A momentary count of the work; `generated_tokens` is the total since the start."""

    running: int
    waiting: int
    generated_tokens: int


class Engine(Protocol):
    """A decoding engine. All methods are called on the event loop; those that are not async return at once."""

    name: str
    capabilities: tuple[str, ...]

    async def start(self) -> None:
        """Load the model; afterwards `health` says ready. Raises BoxloopError when it cannot."""

    async def close(self) -> None:
        """Stop all work and free what `start` took."""

    def generate(self, requests: Sequence[EngineRequest]) -> AsyncGenerator[EngineResult, None]:
        """Yield one result a request as each finishes, all under one version of the weights.

        Closing the generator stops the work that is left. Raises EngineFailed when the engine dies.
        """

    def tensors(self) -> ModelTensors:
        """What a full weight update must hold."""

    async def load_weights(self, source: WeightSource) -> None:
        """Replace the weights by those of a source whose names and shapes were checked.

        Weights that it does not name stay as they are. Called only while nothing is being decoded. Whatever it
        raises, such as WeightSyncFailed, leaves weights that are to be thought broken.
        """

    def canary(self) -> EngineRequest:
        """A short fixed request that passes through every part of the model."""

    def health(self) -> ComponentHealth:
        """Whether the engine can decode, and if not, why."""

    def load(self) -> EngineLoad:
        """How much work there is."""

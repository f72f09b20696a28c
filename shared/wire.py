"""Every body that crosses HTTP between the learner and a rollout server (JSON, strict, frozen).

A batch of rollouts is asked for with `RolloutBatch` and answered by a stream of `StreamLine`s, one JSON object a line
(see shared/framing.py). What is said about weights is in shared/weight_wire.py.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

WIRE_VERSION = 6
"""Raised by every change that an older peer cannot read."""


class WireModel(BaseModel):
    """Strict base: unknown fields are refused, values never change, bytes are base64 in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


class PolicyVersion(WireModel):
    """Which weights: a random word per learner process, and the optimizer updates they have seen."""

    incarnation: str = Field(max_length=64)
    step: int = Field(ge=0, lt=2**63)

    def __str__(self) -> str:
        return f"{self.incarnation}@{self.step}"


# --- rollouts ---------------------------------------------------------------------------------------------------------


MAX_COUNT = 2**31 - 1
"""Engines hold counts of tokens in 32 bits."""
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class RepeatTerminate(WireModel):
    """When a sequence that loops is ended. A limit of 0 is off."""

    min_new_tokens: Count = 0
    max_consecutive_token_repeats: Count = 0
    ngram_size: Count = 0
    ngram_repeats: Count = 0
    max_object_keys: Count = 0


# Engines sample in 32-bit floats: bounds keep what they divide by and compare with from becoming 0 or infinite there.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""vLLM would raise a lower one to the first."""
MAX_BANNED_TOKEN_IDS = 1024
"""vLLM's GPU runner holds no more logit biases for a sequence, and fails over them."""


def _checked_temperature(value: float) -> float:
    if 0 < value < MIN_TEMPERATURE:
        raise ValueError(f"temperature must be 0 (greedy) or at least {MIN_TEMPERATURE}, got {value}")
    return value


Temperature = Annotated[
    float,
    Field(ge=0, le=MAX_TEMPERATURE, json_schema_extra={"anyOf": [{"const": 0}, {"minimum": MIN_TEMPERATURE}]}),
    AfterValidator(_checked_temperature),
]


TopP = Annotated[float, Field(ge=1e-6, le=1)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]


MAX_STOP_BIAS = 7.0
"""A logit more or less than this decides by itself."""
MAX_MARGIN = 100.0
Margin = Annotated[float, Field(ge=-MAX_MARGIN, le=MAX_MARGIN)]


class StopDecision(WireModel):
    """Where an answer decides between ending and going on, and what is taken there from the logit of the ending.

    `at_start` and `behind_coordinate` are the ids with which an ending begins, up to the first by which it is no going
    on. It is decided where the whole answer is `at_start[:-1]`, and where one of `coordinate_ids` and
    `behind_coordinate[:-1]` are its last ids.

        StopDecision(bias=2.5, at_start=(6257,), behind_coordinate=(1341, 3417), coordinate_ids=(151669, …))
    """

    model_config = ConfigDict(allow_inf_nan=False)

    bias: float = Field(ge=-MAX_STOP_BIAS, le=MAX_STOP_BIAS)
    at_start: tuple[int, ...] = Field(min_length=1)
    behind_coordinate: tuple[int, ...] = Field(min_length=1)
    coordinate_ids: tuple[int, ...] = Field(min_length=1)
    stands_alone: bool = Field(
        default=False,
        description="the biased ids stand nowhere else in an answer but in names, so they may be biased throughout",
    )


class Sampling(WireModel):
    """How a batch is decoded. `temperature` 0 is greedy."""

    model_config = ConfigDict(allow_inf_nan=False)

    max_new_tokens: int = Field(ge=1, le=MAX_COUNT)
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    top_k: Count = Field(default=0, description="0 = all tokens")
    repetition_penalty: RepetitionPenalty = 1.0
    stop_token_ids: tuple[int, ...]
    banned_token_ids: tuple[int, ...] = Field(default=(), max_length=MAX_BANNED_TOKEN_IDS)
    repeat_terminate: RepeatTerminate | None = None
    stop_decision: StopDecision | None = None


class InlineImage(WireModel):
    """An encoded image file (PNG or another lossless format Pillow reads)."""

    kind: Literal["inline"] = "inline"
    data: bytes


class PathImage(WireModel):
    """An image by its path under the server's `--image-root`."""

    kind: Literal["path"] = "path"
    path: str


WireImage = Annotated[InlineImage | PathImage, Field(discriminator="kind")]


Uid = Annotated[str, Field(min_length=1, max_length=256)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Sibling(WireModel):
    """A further answer to a sample's prompt and images, which travel once."""

    uid: Uid
    seed: Seed


class RolloutSample(WireModel):
    """One answer to decode, and any number of siblings. `uid`s are the caller's and unique in their batch."""

    uid: Uid
    prompt_token_ids: tuple[int, ...] = Field(
        min_length=1, description="one image placeholder id per image, unexpanded"
    )
    images: tuple[WireImage, ...] = ()
    seed: Seed = 0
    siblings: tuple[Sibling, ...] = ()

    @property
    def answers(self) -> tuple[Sibling, ...]:
        """Every answer that is asked for, by its own uid and seed."""
        return (Sibling(uid=self.uid, seed=self.seed), *self.siblings)


class RolloutBatch(WireModel):
    """Body of `POST /rollouts`."""

    wire_version: int = WIRE_VERSION
    batch_id: str = Field(min_length=1, max_length=128)
    policy_version: PolicyVersion | None = Field(default=None, description="None = whatever the server holds")
    sampling: Sampling
    samples: tuple[RolloutSample, ...] = Field(min_length=1)
    return_logprobs: bool = False

    @property
    def uids(self) -> tuple[str, ...]:
        """Of every answer that is asked for; each has a line of its own."""
        return tuple(answer.uid for sample in self.samples for answer in sample.answers)


FinishReason = Literal["stop", "length", "repetition", "object_limit"]

SampleErrorCode = Literal[
    "prompt_too_long", "bad_image", "unknown_token_id", "bad_placeholders", "cancelled", "engine_error", "engine_died"
]
"""engine_error: this sample. engine_died: all that the engine had; no sample is known to be the reason."""


class StreamHeader(WireModel):
    """First line: what was accepted, and under which weights it is decoded."""

    type: Literal["header"] = "header"
    wire_version: int = WIRE_VERSION
    batch_id: str
    policy_version: PolicyVersion | None
    accepted: int


class StreamSample(WireModel):
    """A finished answer. Times are seconds since the batch was accepted."""

    type: Literal["sample"] = "sample"
    uid: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int = Field(description="after image expansion")
    image_grid: tuple[tuple[int, int, int], ...] = Field(description="(t, h, w) in patches, one per image")
    policy_version: PolicyVersion | None
    token_logprobs: tuple[float, ...] | None = None
    stop_margins: tuple[tuple[int, Margin], ...] = Field(
        default=(),
        description="of each decision of a stop_decision: its place in token_ids, and how far the ending's logit is "
        "above the best other, before the bias",
    )
    queue_s: float
    first_token_s: float
    done_s: float


class StreamError(WireModel):
    """One sample that could not be decoded; the others go on."""

    type: Literal["error"] = "error"
    uid: str
    code: SampleErrorCode
    retryable: bool
    message: str


class StreamHeartbeat(WireModel):
    """Sent every few seconds, so that a silent stream means a dead one."""

    type: Literal["heartbeat"] = "heartbeat"
    running: int
    waiting: int
    generated_tokens: int


class StreamFooter(WireModel):
    """Last line. A stream without it was cut."""

    type: Literal["footer"] = "footer"
    finished: int
    failed: int
    generated_tokens: int
    seconds: float


StreamLine = Annotated[
    StreamHeader | StreamSample | StreamError | StreamHeartbeat | StreamFooter, Field(discriminator="type")
]


class CancelReply(WireModel):
    """Body of the answer to `DELETE /rollouts/{batch_id}`."""

    batch_id: str
    cancelled: int = Field(description="samples that were still being decoded")


# --- service ----------------------------------------------------------------------------------------------------------


class ServerLimits(WireModel):
    """What one request may hold."""

    max_model_len: int
    max_num_seqs: int
    max_open_samples: int
    max_images_per_sample: int
    max_image_pixels: int
    max_body_bytes: int


class ServerInfo(WireModel):
    """Answer to `GET /info`."""

    wire_version: int = WIRE_VERSION
    model: str
    tokenizer_digest: str
    engine: str
    limits: ServerLimits
    capabilities: tuple[str, ...] = Field(description="such as logprobs, transport:file, mode:full")
    policy_version: PolicyVersion | None


class ComponentHealth(WireModel):
    """One component's part in live and ready."""

    name: str
    live: bool
    ready: bool
    reason: str = ""


class HealthReport(WireModel):
    """Answer to `GET /health/` and `GET /ready/`."""

    ok: bool
    components: tuple[ComponentHealth, ...]


class ErrorBody(WireModel):
    """Body of every 4xx and 5xx of ours."""

    code: str
    message: str
    retryable: bool = False
    policy_version: PolicyVersion | None = Field(default=None, description="with 409: the version held")

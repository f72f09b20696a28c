"""What travels through a learner, from a record to an optimizer step. No torch: a step is planned without tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from learner.detection.matching import Match
from learner.detection.parsing import ParsedRollout
from learner.detection.record import Record
from learner.detection.rewards import GradedAnswer
from learner.detection.targets import Target
from shared.wire import PolicyVersion

Grid = tuple[int, int, int]
"""(t, h, w) of an image in patches."""


@dataclass(frozen=True)
class EncodedImage:
    """One image, oriented and resized to a size that both processes' processors leave as it is.

    `pixel_values` is float32 [num_patches, patch_dim] as the vision tower takes it, `grid` is (t, h, w) in patches,
    `png` is the same image as a losslessly encoded file, which is what a rollout server is sent.

        EncodedImage(pixel_values=array of (1024, 1536), grid=(1, 32, 32), png=…)     # 512 × 512 px
    """

    pixel_values: NDArray[np.float32]
    grid: Grid
    png: bytes


@dataclass(frozen=True)
class EncodedRecord:
    """A record with its prompt in ids.

    `request_token_ids` holds one image placeholder (what a server is sent), `prompt_token_ids` holds the expanded ones.

        EncodedRecord(record, request_token_ids=(…, <image>, …), prompt_token_ids=(…, <image>, <image>, …), image)
    """

    record: Record
    request_token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    image: EncodedImage


@dataclass(frozen=True)
class TrainingSample:
    """A target with the image it talks about: what packs are made of.

    TrainingSample(target=ground_truth_target("train:17", …), image=encoded.image).num_tokens == 312
    """

    target: Target
    image: EncodedImage

    @property
    def num_tokens(self) -> int:
        return self.target.num_tokens


@dataclass(frozen=True)
class RolloutRequest:
    """One answer to decode: an encoded record and the seed of its sampling.

    `repeat` counts how often the record has stood before in one call, `sample` the answers to it that were asked for
    before this one, where there are several; None where one is all.

        RolloutRequest(encoded, seed=4711).uid == "train:17"
        RolloutRequest(encoded, seed=4711, repeat=1).uid == "train:17+1"
        RolloutRequest(encoded, seed=4711, sample=3).uid == "train:17#3"
    """

    encoded: EncodedRecord
    seed: int
    repeat: int = 0
    sample: int | None = None

    @property
    def uid(self) -> str:
        """The record's id, made unique within a call."""
        return self.place if self.sample is None else f"{self.place}#{self.sample}"

    @property
    def place(self) -> str:
        """The same for all answers to one record that stands at one place of a call."""
        record_id = self.encoded.record.record_id
        return f"{record_id}+{self.repeat}" if self.repeat else record_id


@dataclass(frozen=True)
class Rollout:
    """One decoded answer. `token_logprobs` is as long as `token_ids` when asked for; times are seconds.

    `stop_margins` has a pair for each decision that was biased: its place in `token_ids`, and the margin of the stop.

    `arrived_at` is this process's monotonic clock at the moment the line came in, however late it is looked at.

        Rollout(request, token_ids=(4913, …, 151645), finish_reason="stop", policy_version=PolicyVersion("a3", 40),
                token_logprobs=None, queue_s=0.02, decode_s=1.9, arrived_at=8125.6)
    """

    request: RolloutRequest
    token_ids: tuple[int, ...]
    finish_reason: str
    policy_version: PolicyVersion | None
    token_logprobs: tuple[float, ...] | None
    queue_s: float
    decode_s: float
    arrived_at: float
    stop_margins: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class LostSample:
    """A request that no server could answer; it counts as zero in the loss.

    LostSample(request, code="prompt_too_long", message="4100 prompt tokens and …", retryable=False)
    """

    request: RolloutRequest
    code: str
    message: str
    retryable: bool

    @property
    def record(self) -> Record:
        return self.request.encoded.record


Answer = Rollout | LostSample
"""What became of a request."""


@dataclass(frozen=True)
class LostRecord:
    """A record that could not be encoded, in a run that skips bad ones; it counts as zero in the loss.

    LostRecord(record, message="train:17: images/17.jpg cannot be read: image file is truncated")
    """

    record: Record
    message: str


Outcome = Answer | LostRecord
"""What became of a record that was to be answered."""


@dataclass(frozen=True)
class DecodingStart:
    """When a step's answers were first asked for (`time.monotonic`), and the seconds that their records took to encode.

    DecodingStart(first_request_at=8123.4, encode_s=0.21)
    """

    first_request_at: float
    encode_s: float


@dataclass(frozen=True)
class TaughtRecord:
    """A record's own answer as a sample, and the seconds that the record was waited for.

    TaughtRecord(sample, encode_s=0.004)
    """

    sample: TrainingSample
    encode_s: float

    @property
    def record_id(self) -> str:
        return self.sample.target.record_id

    @property
    def samples(self) -> tuple[TrainingSample, ...]:
        """What of it is learned."""
        return (self.sample,)


@dataclass(frozen=True)
class TaughtRollout:
    """A rollout with all that was made of it, and the seconds that parsing, matching and the target took.

    TaughtRollout(rollout, parsed, match, sample, make_s=0.0003).match.missing == (2, 5)     # appended
    """

    rollout: Rollout
    parsed: ParsedRollout
    match: Match
    sample: TrainingSample
    make_s: float = 0.0

    @property
    def record_id(self) -> str:
        return self.rollout.request.encoded.record.record_id

    @property
    def samples(self) -> tuple[TrainingSample, ...]:
        """What of it is learned."""
        return (self.sample,)

    def timed(self, make_s: float) -> "TaughtRollout":
        """The same with the seconds it took."""
        return replace(self, make_s=make_s)


@dataclass(frozen=True)
class TaughtSiblings:
    """All answers to one record, graded and held against each other.

    `answers` and `graded` belong together; `lost` are those that no server gave. `price` is what an object was
    charged; `advantages` [answers][tokens] are as they came, before they are divided by `scale`, and none of fewer than
    two answers. `samples` are what of it is learned: nothing of a record whose answers teach nothing, and the record's
    own answer where there is an anchor.

        TaughtSiblings("train:17", answers=(four), graded=(four), lost=(), price=0.18, scale=0.4,
                       advantages=[…], samples=(four))
    """

    record_id: str
    answers: tuple[TaughtRollout, ...]
    graded: tuple[GradedAnswer, ...]
    lost: tuple[LostSample, ...]
    price: float
    scale: float
    advantages: Sequence[Sequence[float]]
    samples: tuple[TrainingSample, ...]
    make_s: float = 0.0

    @property
    def is_silent(self) -> bool:
        """Whether no answer did better than another anywhere."""
        return not any(map(any, self.advantages))

    @property
    def is_skipped(self) -> bool:
        """Whether answers that did better than others are not learned, because that may be noise; an anchor may be."""
        return not self.is_silent and len(self.samples) < len(self.answers)


@dataclass(frozen=True)
class LearnedPack:
    """What one pack held and how long it took. Its loss is in the step's `StepResult`, which is read once.

    LearnedPack(("train:17", "train:4"), num_tokens=1020, capacity=4096, collate_s=0.01, forward_s=0.3, backward_s=0.6)
    """

    record_ids: tuple[str, ...]
    num_tokens: int
    capacity: int
    collate_s: float
    forward_s: float
    backward_s: float

    @property
    def num_targets(self) -> int:
        return len(self.record_ids)


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step came to. `loss` is that of docs/numerics.md.

    `terms` has, by metric, the sum over the step and what it is divided by, samples times W̄, boxes or coordinates: what
    was learned, not what was planned. Which sums are weighted: learner/losses/terms.py. `grad_norm` is taken
    before clipping.

        StepResult(loss=2.31, terms={"loss/ce": (984.1, 612.0), "loss/bbox_l1": (1.1, 17), …}, grad_norm=0.8,
                   learning_rate=1e-5, optimizer_s=0.02)
    """

    loss: float
    terms: Mapping[str, tuple[float, float]]
    grad_norm: float
    learning_rate: float
    optimizer_s: float

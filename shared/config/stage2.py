"""The section `custom.extra.stage2_ab`: the schedule of channels, their losses, and the guard."""

from typing import Annotated, Literal

from pydantic import Field

from shared.config.section import Section
from shared.wire import Temperature

Weight = Annotated[float, Field(ge=0)]


class ScheduleSection(Section):
    """Which channel each optimizer step belongs to."""

    pattern: tuple[str, ...] = Field(
        default=(), description="list of A, B and R, repeated; required by stage2_ab_training"
    )


class ChannelBSection(Section):
    """How a step of Channel B is laid out."""

    mode: Literal["step", "micro"] = Field(
        default="step", description="decode and pack a step as a whole, or by micro-steps"
    )
    rollouts_per_step: int | None = Field(
        default=None, ge=1, description="records of a B step; null = effective_batch_size"
    )
    enable_pipeline: bool | None = Field(
        default=None, description="learn while decoding goes on; null = in server mode"
    )
    rollout_decode_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="answers in flight per server; null = what it decodes at once and a quarter more",
    )


class RewardSection(Section):
    """How the answers of an R step are sampled and paid (docs/numerics.md)."""

    samples_per_record: int = Field(default=4, ge=2, le=64, description="answers to each record of a step")
    temperature: Temperature = Field(
        default=1.0, gt=0, description="of their sampling; the gradient is taken at 1, other sampling keys are off"
    )
    iou_min: float = Field(default=0.5, ge=0, le=1, description="IoU from which a prediction finds a ground truth")
    box_worth: Literal["iou", "iou50_95"] = Field(
        default="iou",
        description="what its box is worth: its IoU, or the share of 0.50, 0.55, … 0.95 that the IoU reaches",
    )
    desc_share: float = Field(default=0.5, ge=0, le=1, description="share of its worth that takes the right desc")
    invalid_cost: float = Field(default=0.3, ge=0, description="cost of a malformed, truncated or looping answer")
    price: float | None = Field(
        default=None, ge=0, description="cost of naming an object; null = half of the samples' own F1"
    )
    price_decay: float = Field(
        default=0.9, ge=0, lt=1, description="of the moving averages behind price and scale, for each R step"
    )
    credit: Literal["object", "answer"] = Field(
        default="object", description="an advantage for each object, or one for the whole answer"
    )
    importance_clip: float = Field(
        default=2.0, ge=1, description="largest weight of a token that was decoded by other weights or another engine"
    )
    anchor_ce_weight: Weight = Field(
        default=0.0, description="Channel A's loss on the same records, beside the reward; 0 = none"
    )
    annotation_recall: float = Field(
        default=1.0, gt=0, le=1, description="share of the objects that the annotations name; below 1 lowers the price"
    )


class GuardSection(Section):
    """Bands that a healthy run stays within, on means over `window` steps that decode."""

    enabled: bool = Field(default=True, description="watch the run")
    action: Literal["warn", "stop"] = Field(default="warn", description="what leaving a band does")
    pred_per_gt_max: float = Field(default=1.5, gt=0, description="predictions per ground-truth object")
    truncated_rate_max: float = Field(default=0.2, ge=0, le=1, description="share of truncated answers")
    valid_rate_min: float = Field(
        default=0.8, ge=0, le=1, description="share of answers with a valid object, or rightly with none"
    )
    window: int = Field(default=10, ge=1, description="steps that are averaged, those that decode")


class Stage2Section(Section):
    """Both channels and the weights of the loss terms, which Stage 1 uses too."""

    schedule: ScheduleSection = Field(default=ScheduleSection(), description="which step is which channel")
    n_softctx_iter: int = Field(default=2, ge=1, description="passes of Channel A; 1 = plain teacher forcing")
    softctx_temperature: float = Field(
        default=1.0, ge=0.01, le=100, description="temperature of the coordinate expectation"
    )
    desc_ce_weight: Weight = Field(default=1.0, description="cross-entropy on the words of desc")
    bbox_l1_weight: Weight = Field(default=2.0, description="L1 between expected and true corners")
    bbox_giou_weight: Weight = Field(default=1.0, description="1 - GIoU of the expected box")
    coord_gate_weight: Weight = Field(
        default=1.0, description="keeps the probability mass inside the coordinate tokens"
    )
    coord_soft_ce_weight: Weight = Field(default=0.0, description="cross-entropy with a Gaussian target over the bins")
    coord_w1_weight: Weight = Field(default=0.0, description="distance of the cumulative distributions over the bins")
    target_sigma: float = Field(default=2.0, ge=0.01, le=1e6, description="width of the Gaussian target in bins")
    stop_ce_weight: Weight = Field(
        default=1.0,
        description="cross-entropy on the token that decides to stop; below 1 where annotations are incomplete",
    )
    prefix_structure_ce_weight: Weight = Field(
        default=1.0, description="cross-entropy on structure of objects that the model found itself; 0 as CoordExp"
    )
    prefix_extras: Literal["keep", "drop"] = Field(
        default="drop", description="extra predictions stay in the target as context, as in CoordExp, or not"
    )
    supervise_iou: float = Field(
        default=0.5, ge=0, le=1, description="IoU from which a matched box is pulled to its ground truth in a target"
    )
    channel_b: ChannelBSection = Field(default=ChannelBSection(), description="layout of a B step")
    reward: RewardSection = Field(default=RewardSection(), description="sampling and payment of R steps")
    guard: GuardSection = Field(default=GuardSection(), description="bands of a healthy run")

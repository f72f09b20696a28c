"""The sections that are not about detection: model, prompt template, what is trained, and the training run."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shared.config.paths import UserPath, UserText
from shared.config.section import Section

Ratio = Annotated[float, Field(ge=0, le=1)]


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _regular_expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return value


def _no_for_false(value: object) -> object:
    return "no" if value is False else value


RegularExpression = Annotated[str, AfterValidator(_regular_expression)]

MayBeNo = BeforeValidator(_no_for_false)
"""YAML reads a bare `no` as false; it is meant as the word."""

OneOrMany = BeforeValidator(_one_or_many)
"""A single word stands for a list of one, as in Hugging Face's arguments."""


class ModelSection(Section):
    """Which model is trained."""

    model: UserText = Field(
        min_length=1, description="directory or hub id of a Qwen3-VL checkpoint with coordinate tokens"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="type of matrix products; auto = bfloat16 where the device has it. Trained weights are float32",
    )
    attn_impl: str = Field(
        default="auto",
        description="attention: sdpa, eager, or on a GPU in bfloat16 varlen or flash_attention_2; auto picks",
    )


class TemplateSection(Section):
    """How a record becomes a prompt."""

    max_pixels: int | None = Field(default=None, gt=0, description="largest image in pixels; null = the processor's")
    min_pixels: int | None = Field(default=None, gt=0, description="smallest image in pixels; null = the processor's")
    system: str | None = Field(default=None, description="system prompt; null = the built-in one")


class TunerSection(Section):
    """Which weights are trained. `use_dora: true` alone means adapters."""

    @model_validator(mode="before")
    @classmethod
    def _dora_is_an_adapter(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("use_dora") is True and "train_type" not in values:
            return {**values, "train_type": "lora"}
        return values

    train_type: Literal["full", "lora"] = Field(
        default="full", description="train the weights themselves or low-rank adapters"
    )
    use_dora: bool = Field(default=False, description="DoRA instead of LoRA")
    lora_rank: int = Field(default=16, ge=1, description="rank of the adapters")
    lora_alpha: float = Field(default=32, gt=0, description="scale of the adapters: alpha / rank")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in front of the adapters")
    target_modules: Annotated[tuple[str, ...], OneOrMany] = Field(
        default=("all-linear",),
        min_length=1,
        description="linear layers that get an adapter, by the end of their dotted name; all-linear = all but the head",
    )
    target_regex: RegularExpression | None = Field(
        default=None, description="the same by a regular expression for the whole dotted name, instead"
    )
    freeze_llm: bool = Field(default=False, description="leave the language model as it is: no adapters either")
    freeze_vit: bool = Field(default=False, description="leave the vision tower as it is: no adapters either")
    freeze_aligner: bool = Field(default=False, description="leave the mergers as they are: no adapters either")
    modules_to_save: Annotated[tuple[str, ...], OneOrMany] = Field(
        default=(), description="modules trained whole beside the adapters, in frozen parts too"
    )
    coordinate_rows: bool = Field(
        default=False,
        description="of embeddings and head train the rows of the coordinate tokens alone, in frozen parts too",
    )


class TrainingSection(Section):
    """The run. Names and meanings are those of Hugging Face's `TrainingArguments` where it has them."""

    output_dir: UserPath = Field(description="run directory; everything a run writes lies in it")
    num_train_epochs: float = Field(default=3.0, gt=0, description="passes over the training records")
    max_steps: int = Field(default=-1, ge=-1, description="optimizer steps; above 0 it overrides num_train_epochs")
    per_device_train_batch_size: int = Field(default=1, ge=1, description="records of a micro-batch")
    effective_batch_size: int | None = Field(default=None, ge=1, description="records of an optimizer step")
    gradient_accumulation_steps: int | None = Field(
        default=None, ge=1, description="micro-batches of an optimizer step; null = from effective_batch_size, else 1"
    )
    learning_rate: float = Field(default=5e-5, gt=0, description="peak learning rate")
    vit_lr: float | None = Field(
        default=None, gt=0, description="learning rate of the vision tower; null = learning_rate"
    )
    aligner_lr: float | None = Field(
        default=None, gt=0, description="learning rate of the merger; null = learning_rate"
    )
    embed_lr: float | None = Field(
        default=None, gt=0, description="learning rate of embeddings and head, or their rows; null = learning_rate"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay on matrices")
    optim: Literal["adamw", "muon"] = Field(default="adamw", description="muon: on hidden matrices, AdamW on the rest")
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradient clipping; 0 = off")
    warmup_ratio: Ratio = Field(default=0.0, description="share of all steps with a rising learning rate")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "warmup_stable_decay"] = Field(
        default="linear", description="shape of the learning rate over the run"
    )
    lr_decay_ratio: Ratio = Field(
        default=0.4, description="warmup_stable_decay: share of all steps with a falling rate"
    )
    seed: int = Field(default=42, ge=0, description="order of the records, sampling, and initial weights of adapters")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass")
    dataloader_drop_last: bool = Field(default=True, description="must be true: every optimizer step is whole")
    dataloader_num_workers: int = Field(default=2, ge=0, description="threads that read images")
    logging_steps: int = Field(default=10, ge=1, description="optimizer steps between two records of logging.jsonl")
    logging_first_step: bool = Field(default=False, description="log the first step too")
    eval_strategy: Annotated[Literal["no", "steps", "epoch"], MayBeNo] = Field(
        default="no", description="when val_jsonl is decoded and scored"
    )
    eval_steps: int | None = Field(default=None, ge=1, description="steps between evaluations; null = logging_steps")
    eval_on_start: bool = Field(default=False, description="evaluate before the first step")
    save_strategy: Annotated[Literal["no", "steps", "epoch", "best"], MayBeNo] = Field(
        default="steps", description="when a checkpoint is written"
    )
    save_steps: int = Field(default=500, ge=1, description="steps between checkpoints")
    save_total_limit: int | None = Field(
        default=None, ge=1, description="checkpoints kept; the best is always among them"
    )
    save_only_model: bool = Field(default=False, description="no optimizer state: such a checkpoint cannot be resumed")
    metric_for_best_model: str = Field(
        default="eval_rollout_f1_desc_iou50_95", description="the best checkpoint has the highest of these"
    )
    resume_from_checkpoint: bool | UserText | None = Field(
        default=None, description="a checkpoint folder, or true for the last whole one in output_dir"
    )
    report_to: Annotated[tuple[Literal["none", "tensorboard", "wandb"], ...], OneOrMany] = Field(
        default=("none",), description="trackers beside logging.jsonl"
    )
    packing: bool = Field(default=True, description="several targets share one row; step mode requires it")
    packing_buffer: int = Field(default=256, ge=1, description="most targets that wait for a pack")
    packing_min_fill_ratio: Ratio = Field(
        default=0.7, description="fill from which a pack is made ready for a busy learner; an idle one gets any"
    )
    packing_drop_last: bool = Field(default=True, description="must be true; nothing is left over at the end of a step")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="port of the learner's /metrics; 0 = any free")

"""The whole configuration; attribute paths are the YAML paths."""

import hashlib
from typing import Literal

from pydantic import Field

from shared.config.channels import DECODES
from shared.config.paths import UserPath
from shared.config.rollout import RolloutMatchingSection
from shared.config.section import Section
from shared.config.stage2 import Stage2Section
from shared.config.training import ModelSection, TemplateSection, TrainingSection, TunerSection


class ExtraSection(Section):
    """What Stage 2 adds."""

    stage2_ab: Stage2Section = Field(default=Stage2Section(), description="channels and losses")
    rollout_matching: RolloutMatchingSection = Field(
        default=RolloutMatchingSection(), description="decoding and matching"
    )


class CustomSection(Section):
    """The detection task: its stage, its data and their reading."""

    trainer_variant: Literal["stage1_sft", "stage2_ab_training"] = Field(description="which training this is")
    train_jsonl: UserPath = Field(description="training records")
    val_jsonl: UserPath | None = Field(default=None, description="validation records; evaluation requires them")
    train_sample_limit: int | None = Field(default=None, ge=1, description="use only the first records")
    val_sample_limit: int | None = Field(default=None, ge=1, description="use only the first records")
    object_ordering: Literal["sorted", "random"] = Field(default="sorted", description="order of objects in an answer")
    coordinate_space: Literal["px", "norm1000"] = Field(
        default="px", description="meaning of bare numbers in the records"
    )
    on_bad_record: Literal["error", "skip"] = Field(
        default="error", description="stop at a bad record, or count and skip it"
    )
    on_long_target: Literal["error", "skip"] = Field(
        default="error", description="the same for one that no pack can hold"
    )
    poly_as_bbox: bool = Field(default=False, description="turn polygons of the ground truth into boxes")
    user_prompt: str | None = Field(
        default=None, description="text after the image, {classes} filled by the record's; null = the built-in one"
    )
    extra: ExtraSection = Field(default=ExtraSection(), description="Stage 2")


class Config(Section):
    """Everything a run is told."""

    global_max_length: int = Field(gt=0, description="capacity of a pack in tokens, image tokens included")
    model: ModelSection = Field(description="which model is trained")
    template: TemplateSection = Field(default=TemplateSection(), description="how a record becomes a prompt")
    tuner: TunerSection = Field(default=TunerSection(), description="which weights are trained")
    training: TrainingSection = Field(description="the run")
    custom: CustomSection = Field(description="task and data")

    @property
    def digest(self) -> str:
        """sha256 of all resolved values, hexadecimal: equal digests are equal configurations."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def stage2(self) -> Stage2Section:
        """Short for `custom.extra.stage2_ab`."""
        return self.custom.extra.stage2_ab

    @property
    def rollout(self) -> RolloutMatchingSection:
        """Short for `custom.extra.rollout_matching`."""
        return self.custom.extra.rollout_matching

    @property
    def is_stage_1(self) -> bool:
        return self.custom.trainer_variant == "stage1_sft"

    @property
    def pattern(self) -> tuple[str, ...]:
        """The letters of the steps, repeated. Stage 1 has one kind of step, which the log calls A."""
        return ("A",) if self.is_stage_1 else self.stage2.schedule.pattern

    @property
    def decodes(self) -> bool:
        """Whether the run needs rollout servers: Stage 2 always does, Stage 1 when it evaluates."""
        return not self.is_stage_1 or self.training.eval_strategy != "no" or self.training.eval_on_start

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro-steps of an optimizer step, given or derived."""
        given = self.training.gradient_accumulation_steps
        if given is not None:
            return given
        whole = self.training.effective_batch_size
        return 1 if whole is None else max(1, whole // self.records_per_micro_step)

    @property
    def records_per_micro_step(self) -> int:
        """`rollout_generate_batch_size` when it is given and packing is on, else `per_device_train_batch_size`."""
        generate = self.rollout.rollout_generate_batch_size
        return generate if generate is not None and self.training.packing else self.training.per_device_train_batch_size

    @property
    def effective_batch_size(self) -> int:
        """Records of an optimizer step, given or derived."""
        return self.training.effective_batch_size or self.records_per_micro_step * self.gradient_accumulation_steps

    @property
    def groups_per_step(self) -> int:
        """Groups of records that are decoded and packed for themselves: one, or one a micro-step in micro mode."""
        return self.gradient_accumulation_steps if self.fills_one_pack else 1

    @property
    def fills_one_pack(self) -> bool:
        """Whether each group must fit one pack."""
        return self.stage2.channel_b.mode == "micro" and not self.is_stage_1

    @property
    def records_per_step(self) -> dict[str, int]:
        """Records of an optimizer step, by its letter."""
        return {**dict.fromkeys(DECODES, self.effective_batch_size), "B": self.rollouts_per_step}

    @property
    def rollouts_per_step(self) -> int:
        """Records of a step of Channel B."""
        return self.stage2.channel_b.rollouts_per_step or self.effective_batch_size

    @property
    def answers_per_record(self) -> dict[str, int]:
        """Answers that are decoded for each record of a step, by its letter."""
        return {"A": 0, "B": 1, "R": self.stage2.reward.samples_per_record}

    @property
    def pipeline(self) -> bool:
        """Whether packs are learned while answers are still being decoded."""
        chosen = self.stage2.channel_b.enable_pipeline
        return self.rollout.vllm.mode == "server" if chosen is None else chosen

    @property
    def sends_merged(self) -> bool:
        """Whether servers that hold everything are sent only what training touches, adapters merged."""
        mode = self.rollout.vllm.sync.mode
        return mode in ("merged", "adapter") or (mode == "auto" and self.tuner.train_type == "lora")

    @property
    def max_model_len(self) -> int:
        """Longest prompt + answer of a rollout server."""
        return self.rollout.vllm.max_model_len or self.global_max_length

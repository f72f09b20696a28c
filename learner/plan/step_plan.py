"""What one optimizer step is about to do, known in full before anything is decoded."""

from dataclasses import dataclass, replace

from learner.detection.record import Record
from learner.plan.schedule import Channel

NUM_CORNER_VALUES = 4
"""Coordinates of a box: x1, y1, x2, y2."""


@dataclass(frozen=True)
class StepTotals:
    """What the step's loss is divided by (N, B and W̄ of docs/numerics.md).

    All is known before the step: N and B are counted from its records, so a sample that is lost on the way counts as
    zero, and `answer_weight` is a constant of the run. So loss and gradient do not depend on packing, order or timing.
    `num_answers` are those that are sampled for a step of rewards.
    """

    num_samples: float
    num_boxes: float
    answer_weight: float = 1.0
    num_answers: int = 0

    @classmethod
    def of(cls, records: tuple[Record, ...], answer_weight: float = 1.0, answers_per_record: int = 0) -> "StepTotals":
        """Count samples and ground-truth boxes; a step without any box divides by 1."""
        num_boxes = max(1, sum(len(record.objects) for record in records))
        return cls(len(records), num_boxes, answer_weight, len(records) * answers_per_record)

    def weighted(self, weight: float) -> "StepTotals":
        """Such that all but the reward counts `weight` times."""
        return replace(self, num_samples=self.num_samples / weight, num_boxes=self.num_boxes / weight)


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step.

    `step` counts finished optimizer steps before this one; `cursor` counts the records consumed once it is done.
    `groups` is what is decoded and packed together: all records of the step, or in micro mode one group a micro-step.
    `answers_per_record` are decoded for each record, 0 in a step that decodes nothing.
    """

    step: int
    channel: Channel
    epoch: float
    groups: tuple[tuple[Record, ...], ...]
    totals: StepTotals
    cursor: int
    answers_per_record: int = 1

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(record for group in self.groups for record in group)

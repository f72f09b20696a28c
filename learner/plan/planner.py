"""From (step, cursor) to the plan of the next optimizer step; nothing else is state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from learner.detection.record import Record
from learner.plan.schedule import Channel, channel_of
from learner.plan.step_plan import StepPlan, StepTotals
from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.config.models import Config


@dataclass(frozen=True)
class Planner:
    """Walks the pattern over the records.

    `record_at` maps a cursor, counted in records over all epochs, to a record; a step at the end of an epoch takes the
    rest of it and the head of the next, so no record is left out between epochs. A step of a channel consumes
    `records_per_step` of its letter, in `groups_per_step` equal groups. `answer_weight` is W̄ of docs/numerics.md, of
    which a plan that is only counted has no need.
    """

    pattern: Sequence[str]
    records_per_step: Mapping[str, int]
    groups_per_step: int
    num_records: int
    record_at: Callable[[int], Record]
    answer_weight: float = 1.0
    answers_per_record: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, config: "Config", num_records: int, record_at: Callable[[int], Record], answer_weight: float = 1.0
    ) -> "Planner":
        """The plan of a configuration over `num_records` records."""
        return cls(
            config.pattern,
            config.records_per_step,
            config.groups_per_step,
            num_records,
            record_at,
            answer_weight,
            config.answers_per_record,
        )

    def plan(self, step: int, cursor: int) -> StepPlan:
        """Plan optimizer step `step`, which starts at record `cursor`."""
        channel = channel_of(step, self.pattern)
        taken = self.records_per_step[channel.value]
        records = tuple(self.record_at(position) for position in range(cursor, cursor + taken))
        size = taken // self.groups_per_step
        answers = self.answers_per_record.get(channel.value, 1)
        return StepPlan(
            step=step,
            channel=channel,
            epoch=(cursor + taken) / self.num_records,
            groups=tuple(records[start : start + size] for start in range(0, taken, size)),
            totals=StepTotals.of(records, self.answer_weight, answers if channel is Channel.R else 0),
            cursor=cursor + taken,
            answers_per_record=answers,
        )

    def next_decoding(self, plan: StepPlan, within: int) -> StepPlan | None:
        """The first step from `plan` on that decodes, at most `within` steps after it; None when there is none."""
        while not plan.channel.decodes:
            if within <= 0:
                return None
            plan, within = self.plan(plan.step + 1, plan.cursor), within - 1
        return plan

    def num_steps_of(self, config: "Config") -> int:
        """The steps of a run: `max_steps`, or the whole ones in its epochs. Raises ConfigError when there is none."""
        training = config.training
        if training.max_steps > 0:
            return training.max_steps
        num_steps = self.num_steps(training.num_train_epochs)
        if num_steps == 0:
            first = self.records_per_step[channel_of(0, self.pattern).value]
            raise ConfigError(
                f"training.num_train_epochs: {training.num_train_epochs:g} passes over the {self.num_records} records "
                f"of {config.custom.train_jsonl} make no step of {first} records (training.effective_batch_size, or "
                "rollouts_per_step of a B step), so nothing would be trained; lower that, or give more epochs, "
                "records or training.max_steps"
            )
        return num_steps

    def num_steps(self, epochs: float) -> int:
        """Whole steps in `epochs` passes over the records; a last step that would be short is not begun."""
        steps = cursor = 0
        while True:
            cursor += self.records_per_step[channel_of(steps, self.pattern).value]
            if cursor > epochs * self.num_records:
                return steps
            steps += 1

"""From (step, cursor) to the plan of the next optimizer step; nothing else is state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from learner.detection.record import Record
from learner.plan.schedule import Channel, channel_of
from learner.plan.step_plan import StepPlan, StepTotals


@dataclass(frozen=True)
class Planner:
    """Walks the pattern over the records.

    `record_at` maps a cursor, counted in records over all epochs, to a record; a step at the end of an epoch takes the
    rest of it and the head of the next, so no record is left out between epochs. A step of a channel consumes
    `records_per_step[channel]` records in `groups_per_step` equal groups.
    """

    pattern: Sequence[str]
    records_per_step: dict[Channel, int]
    groups_per_step: dict[Channel, int]
    num_records: int
    record_at: Callable[[int], Record]

    def plan(self, step: int, cursor: int) -> StepPlan:
        """Plan optimizer step `step`, which starts at record `cursor`."""
        channel = channel_of(step, self.pattern)
        taken = self.records_per_step[channel]
        records = tuple(self.record_at(position) for position in range(cursor, cursor + taken))
        size = taken // self.groups_per_step[channel]
        return StepPlan(
            step=step,
            channel=channel,
            epoch=(cursor + taken) / self.num_records,
            groups=tuple(records[start : start + size] for start in range(0, taken, size)),
            totals=StepTotals.of(records),
            cursor=cursor + taken,
        )

    def next_b(self, plan: StepPlan, within: int) -> StepPlan | None:
        """The first B step from `plan` on, at most `within` steps after it; None when there is none."""
        while plan.channel is not Channel.B:
            if within <= 0:
                return None
            plan, within = self.plan(plan.step + 1, plan.cursor), within - 1
        return plan

    def num_steps(self, epochs: float) -> int:
        """Whole steps in `epochs` passes over the records; a last step that would be short is not begun."""
        steps = cursor = 0
        while True:
            cursor += self.records_per_step[channel_of(steps, self.pattern)]
            if cursor > epochs * self.num_records:
                return steps
            steps += 1

"""How far a run has come: all the state that the plan needs to go on."""

from dataclasses import dataclass

from learner.plan.step_plan import StepPlan


@dataclass
class Progress:
    """`step` counts finished optimizer steps, `cursor` the records they consumed over all epochs.

    `saved_step` is that of the newest checkpoint. With `stop_requested` the step that runs is the last.
    """

    num_steps: int
    step: int = 0
    cursor: int = 0
    epoch: float = 0.0
    saved_step: int = 0
    stop_requested: bool = False

    def advance(self, step: StepPlan) -> None:
        """Note that `step` is done."""
        self.step, self.cursor, self.epoch = step.step + 1, step.cursor, step.epoch

    @property
    def done(self) -> bool:
        return self.step >= self.num_steps

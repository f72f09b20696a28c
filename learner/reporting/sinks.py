"""Where finished steps and evaluations go: `logging.jsonl`, `ledger.jsonl`, trackers and the console."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console

from learner.plan.progress import Progress
from learner.plan.schedule import Channel
from learner.reporting.jsonl_log import JsonlLog
from learner.reporting.step_report import StepRecord
from learner.reporting.tallies import Tallies
from learner.reporting.trackers import Tracker


class Sinks:
    """Writes one record per logged optimizer step, reduced from the sums since the last one, flushed line by line.

    `logging_steps` steps share a record; the first step has its own when `log_first` is set. The ledger has a line for
    every step: which records were trained and which were lost.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        progress: Progress,
        logging_steps: int = 1,
        *,
        log_first: bool = False,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._log = JsonlLog(folder / "logging.jsonl", progress.step)
        self._ledger = JsonlLog(folder / "ledger.jsonl", progress.step)
        self._console = console
        self._progress = progress
        self._logging_steps = logging_steps
        self._log_first = log_first
        self._trackers = trackers
        self._waiting = Tallies()
        self._bar = progress_bar(console)
        self._task = self._bar.add_task("training", total=progress.num_steps, completed=progress.step)

    def __enter__(self) -> "Sinks":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._log.close()
        self._ledger.close()
        for tracker in self._trackers:
            tracker.close()

    def write(self, step: StepRecord) -> None:
        """Take a finished step; logs when a record is due."""
        self._waiting += step.tallies
        finished = step.step + 1
        self._bar.update(self._task, completed=finished, description=f"training {step.channel.value}")
        lost_ids = [lost.record.record_id for lost in step.lost]
        silent = {"silent": step.silent} if step.silent else {}
        self._ledger.append({"step": finished, "trained": step.trained, "lost": lost_ids, **silent})
        for lost in step.lost:
            message = f"step {finished}: {lost.record.record_id} lost: {lost.message}"
            self._console.print(message, style="yellow", markup=False)
        due = (
            finished % self._logging_steps == 0
            or finished == self._progress.num_steps
            or (self._log_first and finished == 1)
        )
        if due:
            metrics, self._waiting = self._waiting.reduced(), Tallies()
            self.append({"step": finished, "channel": step.channel.value, **metrics})
            self._console.print(console_line(finished, self._progress.num_steps, step.channel, metrics))

    def warn(self, message: str | None) -> None:
        """Tell the user, and the log, if there is something to tell."""
        if message:
            self._console.print(f"warning: {message}", style="yellow", markup=False)
            self.append({"step": self._progress.step, "warning": message})

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line to `logging.jsonl`, and its numbers to the trackers."""
        self._log.append(record)
        numbers = {name: value for name, value in record.items() if isinstance(value, (int, float))}
        step = int(numbers.pop("step"))
        for tracker in self._trackers:
            tracker.write(step, numbers)


def progress_bar(console: Console) -> bars.Progress:
    """The bar of every long part; where no terminal shows it, the lines beside it must do."""
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def console_line(step: int, num_steps: int, channel: Channel, metrics: dict[str, float]) -> str:
    """One step for a human: what was learned, how fast, where the time of both sides went, how the answers were."""
    parts = [
        f"{channel.value} {step:>4}/{num_steps}",
        f"loss {metrics['loss']:.3f}",
        *(
            f"{name} {metrics[key]:.3f}"
            for name, key in (("ce", "loss/ce"), ("giou", "loss/bbox_giou"))
            if key in metrics
        ),
        f"lr {metrics['learning_rate']:.1e}",
        f"{metrics['time/step_s']:.2f} s",
        f"{metrics['packing/tokens_per_s']:.0f} tokens/s learned",
        f"learner {metrics['share/learner_computing']:.0%}",
    ]
    if metrics.get("share/server_decoding"):
        parts.append(f"servers {metrics['share/server_decoding']:.0%}")
    if "reward/mean" in metrics:
        parts += [f"reward {metrics['reward/mean']:.2f}", f"price {metrics['reward/price']:.2f}"]
    if "rollout/recall" in metrics:
        parts += [
            f"recall {metrics['rollout/recall']:.2f}",
            f"precision {metrics.get('rollout/precision', 0):.2f}",
            f"valid {metrics['rollout/sample_valid_pred_rate']:.2f}",
            f"{metrics.get('rollout/gen_tokens_per_s', 0):.0f} tokens/s decoded",
        ]
    return "  ".join(parts)

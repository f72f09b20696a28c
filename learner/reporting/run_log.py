"""What a run left behind in its folder, read back."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from shared.errors import DataError

LOG_FILE = "logging.jsonl"
_PICTURE = re.compile(r"(?P<kind>[a-z]+)-(?P<step>\d+)-(?P<record>.+)\.png")


@dataclass(frozen=True)
class LoggedRecord:
    """One line of `logging.jsonl`, written after `step` finished steps.

    A logged step has a `channel`, an evaluation has none, and a `warning` stands alone.
    """

    step: int
    channel: str | None
    metrics: Mapping[str, float]
    warning: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of one answer: of an evaluation ("eval") or a monitor dump, after `step` finished steps."""

    path: Path
    kind: str
    step: int
    record: str


@dataclass(frozen=True)
class RunLog:
    """A run's records in the order they were written, and its pictures by step."""

    name: str
    records: tuple[LoggedRecord, ...]
    pictures: tuple[Picture, ...]

    @property
    def steps(self) -> list[LoggedRecord]:
        return [record for record in self.records if record.channel is not None]

    @property
    def evaluations(self) -> list[LoggedRecord]:
        return [record for record in self.records if record.channel is None and record.metrics]

    @property
    def warnings(self) -> list[LoggedRecord]:
        return [record for record in self.records if record.warning]

    def points(self, metric: str, channel: str | None = None) -> list[tuple[int, float]]:
        """(step, value) wherever the metric was logged, of one channel's steps if that is given."""
        return [
            (record.step, record.metrics[metric])
            for record in self.records
            if metric in record.metrics and channel in (None, record.channel)
        ]

    def seconds(self, name: str) -> float:
        """Seconds over the whole run of a `time/…` metric, or of a `share/…` of the time in and between steps."""
        total, before = 0.0, 0
        for record in self.steps:
            num_steps, before = record.step - before, record.step
            of_one_step = 1.0
            if name.startswith("share/"):
                of_one_step = sum(record.metrics.get(f"time/{part}_s", 0.0) for part in ("step", "between_steps"))
            total += record.metrics.get(name, 0.0) * of_one_step * num_steps
        return total


def read_runs(folder: Path) -> list[RunLog]:
    """The run in `folder` itself, then those in its subfolders, oldest first.

    Raises DataError when there is none, or when a log cannot be read.
    """
    logs = [*folder.glob(LOG_FILE), *sorted(folder.glob(f"*/{LOG_FILE}"), key=_age)]
    if not logs:
        raise DataError(f"{folder} holds no {LOG_FILE}, nor do its subfolders; give the output_dir of a run")
    return [RunLog(log.parent.resolve().name, tuple(_records(log)), _pictures(log.parent / "pictures")) for log in logs]


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, str(path)


def _records(log: Path) -> Iterator[LoggedRecord]:
    """All whole lines; one that a killed run did not finish is passed over."""
    *lines, _ = log.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            content = orjson.loads(line)
            metrics = {
                name: float(value)
                for name, value in content.items()
                if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
            }
            yield LoggedRecord(int(content["step"]), content.get("channel"), metrics, content.get("warning", ""))
        except (orjson.JSONDecodeError, KeyError, AttributeError) as error:
            raise DataError(f"{log}:{number}: not a record of this log ({error!r}): {line[:80]!r}") from None


def _pictures(folder: Path) -> tuple[Picture, ...]:
    found: Sequence[tuple[Path, re.Match[str] | None]] = [
        (path, _PICTURE.fullmatch(path.name)) for path in sorted(folder.glob("*.png"))
    ]
    pictures = [
        Picture(path, name["kind"], int(name["step"]), name["record"]) for path, name in found if name is not None
    ]
    return tuple(sorted(pictures, key=lambda picture: (picture.step, picture.record)))

"""The operating point that a checkpoint is decoded at, in a file beside its weights."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console

from learner.detection.operating_point import PLAIN, OperatingPoint
from shared.checkpoint_facts import OPERATING_POINT_FILE
from shared.errors import DataError
from shared.whole_file import write_whole
from shared.wire import MAX_STOP_BIAS


class SavedPoint(BaseModel):
    """The file's content: the point, and what it was chosen by.

    SavedPoint(stop_bias=2.0, score_threshold=0.0, metric="eval_rollout_f1_iou50", value=0.77, plain_value=0.64,
               num_images=200, annotation_recall=1.0)
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    stop_bias: float = Field(ge=-MAX_STOP_BIAS, le=MAX_STOP_BIAS)
    score_threshold: float = Field(ge=0, le=1)
    metric: str
    value: float
    plain_value: float
    num_images: int
    annotation_recall: float

    @property
    def point(self) -> OperatingPoint:
        return OperatingPoint(self.stop_bias, self.score_threshold)


def save_point(saved: SavedPoint, checkpoint: Path) -> Path:
    """Write it into a checkpoint's folder, over an older one."""
    file = checkpoint / OPERATING_POINT_FILE
    write_whole(file, saved.model_dump_json(indent=2).encode() + b"\n")
    return file


def read_point(checkpoint: Path) -> SavedPoint | None:
    """A checkpoint's operating point; None when it was never calibrated. Raises DataError for a broken file."""
    file = checkpoint / OPERATING_POINT_FILE
    if not file.exists():
        return None
    try:
        return SavedPoint.model_validate_json(file.read_bytes())
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))} {each['msg']}".strip() for each in error.errors())
        raise DataError(f"{file} is no operating point ({wrong}); delete it, or run `boxloop calibrate`") from error


def told_point(checkpoint: Path | None, console: Console) -> OperatingPoint:
    """A checkpoint's operating point, which the user is told of; the plain one where there is none."""
    saved = read_point(checkpoint) if checkpoint is not None else None
    if saved is None:
        return PLAIN
    console.print(
        f"at the operating point of {checkpoint}: stop bias {saved.stop_bias:g}, scores from {saved.score_threshold:g} "
        "(--plain leaves it unused)",
        markup=False,
    )
    return saved.point

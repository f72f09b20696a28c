"""What an evaluation found, as tables for the console and as JSON for whatever comes next."""

import math
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from learner.evaluation.calibration import Calibration
from learner.evaluation.scoring import ClassScores, Scores
from learner.reporting.console_tables import print_rows, print_whole

NUM_CLASSES_SHOWN = 20
CLEARLY_INCOMPLETE = 0.9
"""A smaller share of the surest objects annotated asks for a word."""
HEADLINES = {
    "F1, equal desc, mean over IoU 0.50:0.95": "eval_rollout_f1_desc_iou50_95",
    "F1, equal desc": "eval_rollout_f1_desc_iou50",
    "F1 by place, mean over IoU 0.50:0.95": "eval_rollout_f1_iou50_95",
    "F1 by place": "eval_rollout_f1_iou50",
    "precision": "eval_rollout_precision_iou50",
    "recall": "eval_rollout_recall_iou50",
    "AP, IoU 0.50:0.95": "eval_coco_ap",
    "AP50": "eval_coco_ap50",
    "AP75": "eval_coco_ap75",
    "AP, small / medium / large": "eval_coco_ap_small eval_coco_ap_medium eval_coco_ap_large",
    "AR of 1 / 10 / 100": "eval_coco_ar1 eval_coco_ar10 eval_coco_ar100",
    "AP, descs left out": "eval_coco_agnostic_ap",
    "valid answers": "eval_rollout_sample_valid_pred_rate",
    "truncated answers": "eval_rollout_parse_truncated_rate",
}
"""What is shown, and the metrics it is; IoU is at least 0.5 unless it is said."""
CLASS_COLUMNS = (
    *("desc", "gt_objects", "f1", "ap", "precision", "recall"),
    *("ap50", "ar100", "pred_objects", "matched"),
)
"""Of each desc, the most telling first: a narrow terminal leaves the last ones out."""


def print_scores(scores: Scores, console: Console) -> None:
    """Print the scores of the whole set and of its most frequent descs."""
    print_whole(summary_table(scores), console)
    print_classes(scores, console)


def write_scores(scores: Scores, path: Path) -> None:
    """Write all metrics, and every desc with its own, as JSON."""
    about = {"step": scores.step, "num_images": scores.num_images, "metrics": scores.metrics}
    content = about | {"classes": [class_numbers(each) for each in scores.classes]}
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def class_numbers(scores: ClassScores) -> dict[str, str | int | float | None]:
    """One desc: counts, scores at IoU 0.5 and COCO's; None where there is nothing to divide by."""
    agreement = scores.agreement
    matched = agreement.num_matched[0]
    numbers: dict[str, str | int | float | None] = {
        "desc": scores.desc,
        "gt_objects": agreement.num_ground_truth,
        "pred_objects": agreement.num_predictions,
        "matched": matched,
        "precision": matched / agreement.num_predictions if agreement.num_predictions else None,
        "recall": matched / agreement.num_ground_truth,
        "f1": 2 * matched / agreement.num_objects,
    }
    return numbers | asdict(scores.precision)


def summary_table(scores: Scores) -> Table:
    table = Table(title=f"{scores.num_images} images", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for title, names in HEADLINES.items():
        values = [scores.metrics.get(name) for name in names.split()]
        if any(value is not None for value in values):
            table.add_row(title, " / ".join(map(_shown, values)))
    return table


def print_classes(scores: Scores, console: Console) -> None:
    """A row for each of the most frequent descs."""
    shown = scores.classes[:NUM_CLASSES_SHOWN]
    left = len(scores.classes) - len(shown)
    numbers = [class_numbers(each) for each in shown]
    rows = [{name.replace("_", " "): _shown(each[name]) for name in CLASS_COLUMNS if name in each} for each in numbers]
    print_rows(
        rows, console, title="By desc, IoU 0.5", caption=f"and {left} descs with fewer objects" if left else None
    )


def calibration_table(found: Calibration) -> Table:
    """The best threshold of each bias; the point that was chosen stands out."""
    title = f"{found.metric} on {found.num_images} images"
    table = Table(title=title, caption="precision and recall as annotated, at IoU 0.5 or the mean of the goal's")
    for heading in ("stop bias", "scores from", "value", "precision", "recall", "predictions / object"):
        table.add_column(heading, justify="right")
    for each in found.tried:
        point = each.point
        numbers = (each.value, each.precision, each.recall, each.predictions_per_object)
        cells = (f"{point.stop_bias:g}", f"{point.score_threshold:g}", *(f"{number:.3f}" for number in numbers))
        table.add_row(*cells, style="bold green" if each == found.best else None)
    return table


def reading_of(found: Calibration) -> list[str]:
    """What the table means, and what the annotations do not let it say."""
    point, recall, surest = found.best.point, found.annotation_recall, found.surest
    lines = [
        f"{found.metric} {found.plain.value:.3f} -> {found.best.value:.3f} at stop bias {point.stop_bias:g}, "
        f"scores from {point.score_threshold:g}; chosen on these images, so score it on others"
    ]
    if surest is None:
        return [*lines, f"{found.num_surest} objects were named, too few to tell how complete annotations are"]
    key = "custom.extra.stage2_ab.reward.annotation_recall"
    lines.append(f"of the {found.num_surest} objects it is surest of, {surest:.0%} are annotated")
    if recall == 1 and surest < CLEARLY_INCOMPLETE:
        lines.append(
            "warning: either it is wrong where it is surest, or annotators leave objects out. If they do, "
            f"{found.metric} counts right objects as wrong and its best bias is too low: look at those pictures, and "
            f"give {key}={surest:.2f} or what whole annotations of some tell"
        )
    elif recall < surest - 2 * math.sqrt(surest * (1 - surest) / found.num_surest):
        lines.append(
            f"warning: {key}={recall:g} is less than that, which cannot be when annotators leave objects out at "
            "random: the chosen bias is too high"
        )
    return lines


def _shown(value: str | int | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)

"""One HTML page about a run: `python -m learner.reporting.report RUN_DIR` writes `RUN_DIR/report.html`.

It opens from disk and needs no network. RUN_DIR is a run's output_dir, a folder of several runs, or both.
"""

import argparse
import base64
import io
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from learner.reporting.charts import LEFT, RIGHT, WIDTH, Series, Share, duration, line_chart, number, share_bar
from learner.reporting.page import page
from learner.reporting.run_log import Picture, RunLog, read_runs
from shared.config.paths import user_path
from shared.console import settle_streams
from shared.errors import BoxloopError

LARGEST_PNG_BYTES = 200_000
"""Larger pictures go into the page as JPEG."""
MOST_PICTURES = 8

LEARNER_SHARES = (
    ("computing", "share/learner_computing", 3),
    ("waiting for rollouts", "share/learner_waiting_rollouts", 2),
    ("waiting for data", "share/learner_waiting_data", 5),
    ("publishing weights", "share/learner_syncing", 4),
)
SERVER_SHARES = (
    ("decoding", "share/server_decoding", 1),
    ("loading weights", "share/server_syncing", 4),
    ("idle by schedule", "share/server_idle", 6),
    ("starved", "share/server_starved", 2),
)
COMPUTE_TIMES = (
    ("forward", "time/forward_s", 1),
    ("backward", "time/backward_s", 3),
    ("optimizer", "time/optimizer_s", 4),
    ("packing", "time/post_rollout_pack_s", 5),
)
SUMMARY_COLUMNS = (
    ("F1", "f1"),
    ("F1, equal desc", "f1_desc"),
    ("Recall", "recall"),
    ("Precision", "precision"),
    ("Valid answers", "valid"),
)


def write_report(folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path. Raises DataError when no run lies there."""
    runs = read_runs(folder)
    summary_file = folder / "summary.json"
    summary = json.loads(summary_file.read_bytes()) if summary_file.exists() else {}
    title = f"Boxloop · {folder.resolve().name}"
    links = "".join(f'<a href="#{escape(run.name)}">{escape(run.name)}</a>' for run in runs)
    parts = [f"<h1>{escape(title)}</h1>", f"<nav>{links}</nav>" if len(runs) > 1 else "", summary_section(summary)]
    parts += [run_section(run) for run in runs]
    file = folder / "report.html"
    file.write_text(page(title, "\n".join(filter(None, parts)), (WIDTH, LEFT, RIGHT)), encoding="utf-8")
    return file


def summary_section(summary: Mapping[str, Any]) -> str:
    """What a demo found: the same validation images before, and after each of its arms."""
    arms = summary.get("arms", ())
    if not arms:
        return ""
    head = "".join(f"<th>{label}</th>" for label in ("", "Steps", "Seconds", *(label for label, _ in SUMMARY_COLUMNS)))
    rows = "".join(_summary_row(arm, arms[0]) for arm in arms)
    versions = " · ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    facts = (
        f"At IoU 0.5 on validation images with whole annotations; trained on {summary['about']}. Every arm started "
        f"from the same checkpoint and took about as long. {duration(summary['seconds'])} in all, engine "
        f"{summary['engine']}, seed {summary['seed']}."
    )
    return (
        f'<h2>Before, and after each arm</h2><div class="table"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="lead">{escape(summary["told"])}</p>'
        f'<p class="lead">{escape(facts)}</p><p class="unit">{escape(versions)}</p>'
    )


def _summary_row(arm: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    spent = f"<td>{arm['steps']}</td><td>{arm['seconds']:.0f}</td>" if arm["steps"] else "<td></td><td></td>"
    cells = []
    for _, key in SUMMARY_COLUMNS:
        change = "" if arm is before else f"<small>{arm[key] - before[key]:+.3f}</small>"
        cells.append(f'<td>{arm[key]:.3f}{change}<meter min="0" max="1" value="{arm[key]:.4f}"></meter></td>')
    return f"<tr><th>{escape(arm['title'])}</th>{spent}{''.join(cells)}</tr>"


def run_section(run: RunLog) -> str:
    """One run: where it ended, its curves, where its time went, and what its answers look like."""
    blocks = (
        ("", tiles(run)),
        ("Warnings", warnings(run)),
        ("Curves", f'<div class="charts">{curves(run)}</div>'),
        ("Where the time went", wall_time(run)),
        ("Pictures", pictures(run.pictures)),
    )
    content = "".join((f"<h3>{title}</h3>" if title else "") + block for title, block in blocks if block)
    return f'<h2 id="{escape(run.name)}">{escape(run.name)}</h2>{content}'


def tiles(run: RunLog) -> str:
    """The run's last numbers."""
    steps = run.steps
    facts = [("optimizer steps", str(steps[-1].step) if steps else "0")]
    facts.append(("training time", duration(run.seconds("share/learner_computing") + _waiting(run))))
    for label, metric in (
        ("last loss", "loss"),
        ("validation F1, IoU 0.5", "eval_rollout_f1_iou50"),
        ("validation recall, IoU 0.5", "eval_rollout_recall_iou50"),
        ("tokens/s decoded", "rollout/gen_tokens_per_s"),
    ):
        if points := run.points(metric):
            facts.append((label, number(points[-1][1])))
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for label, value in facts
        )
        + "</div>"
    )


def warnings(run: RunLog) -> str:
    """What the run warned of, and when."""
    lines = (f"<li>After step {record.step}: {escape(record.warning)}</li>" for record in run.warnings)
    return f"<ul>{''.join(lines)}</ul>" if run.warnings else ""


def _waiting(run: RunLog) -> float:
    return sum(run.seconds(name) for _, name, _ in LEARNER_SHARES[1:])


def curves(run: RunLog) -> str:
    """Everything that changes from step to step; a chart whose metrics a run does not have is left out."""

    def named(*metrics: tuple[str, str], channel: str | None = None) -> list[Series]:
        return [Series(label, run.points(name, channel), colour) for colour, (label, name) in enumerate(metrics, 1)]

    def by_channel(metric: str) -> list[Series]:
        channels = sorted({record.channel for record in run.steps if record.channel})
        return [Series(channel, run.points(metric, channel), colour) for colour, channel in enumerate(channels, 1)]

    quality = named(("recall", "rollout/recall"), ("precision", "rollout/precision"), ("F1", "rollout/f1"))
    validation = named(
        ("recall", "eval_rollout_recall_iou50"),
        ("F1", "eval_rollout_f1_iou50"),
        ("valid", "eval_rollout_sample_valid_pred_rate"),
    )
    answers = named(
        ("valid", "rollout/sample_valid_pred_rate"),
        ("truncated", "rollout/parse_truncated_rate"),
        ("predictions per object", "rollout/pred_per_gt"),
    )
    rewards = named(
        ("reward", "reward/mean"),
        ("price", "reward/price"),
        ("soft F1", "reward/soft_f1"),
        ("silent", "reward/silent_records"),
    )
    return "".join(
        (
            line_chart("Rollouts against ground truth", quality, share=True),
            line_chart("Validation, IoU 0.5", validation if len(run.evaluations) > 1 else [], share=True),
            line_chart("Answers", answers, share=True),
            line_chart("Rewards", rewards),
            line_chart("Entropy of answers", named(("nats a token", "reward/entropy"))),
            line_chart("Loss", by_channel("loss"), "by channel"),
            line_chart("Cross-entropy", by_channel("loss/ce"), "by channel"),
            line_chart("Box terms", named(("L1", "loss/bbox_l1"), ("1 − GIoU", "loss/bbox_giou"))),
            line_chart("Coordinate mass", named(("mass", "loss/coord_mass")), share=True),
            line_chart("Seconds a step", by_channel("time/step_s"), "by channel"),
            line_chart("Decoding", named(("tokens/s", "rollout/gen_tokens_per_s"))),
            line_chart("Gradient norm", named(("norm", "grad_norm"))),
            line_chart("Learning rate", named(("rate", "learning_rate")), noisy=False),
        )
    )


def wall_time(run: RunLog) -> str:
    """Both processes' seconds by what they did, and the learner's compute by its parts."""
    decoded = run.seconds("share/server_decoding") > 0
    return "".join(
        share_bar(title, [Share(label, run.seconds(name), colour) for label, name, colour in parts])
        for title, parts in (
            ("Learner", LEARNER_SHARES),
            ("Rollout servers", SERVER_SHARES if decoded else ()),
            ("The learner's compute", COMPUTE_TIMES),
        )
    )


def pictures(found: Sequence[Picture]) -> str:
    """Evaluations before and after, record by record; monitor dumps folded below, newest first."""
    evaluations = [picture for picture in found if picture.kind == "eval"]
    names = list(dict.fromkeys(picture.record for picture in evaluations))[:MOST_PICTURES]
    pairs = []
    for name in names:
        of_record = [picture for picture in evaluations if picture.record == name]
        ends = of_record[:1] + of_record[-1:] if len(of_record) > 1 else of_record
        pairs.append(f'<div class="pair">{"".join(map(_figure, ends))}</div>')
    dumps = [picture for picture in reversed(found) if picture.kind != "eval"][:MOST_PICTURES]
    folded = "".join(map(_figure, dumps))
    more = f'<details><summary>Training answers</summary><div class="pair">{folded}</div></details>' if dumps else ""
    return "".join(pairs) + more


def _figure(picture: Picture) -> str:
    text = f"{picture.record}, after step {picture.step}"
    return (
        f"<figure><figcaption>{escape(text)}</figcaption>"
        f'<img loading="lazy" alt="{escape(text)}" src="{data_uri(picture.path)}"></figure>'
    )


def data_uri(path: Path) -> str:
    """A picture as text that stands for itself."""
    content, kind = path.read_bytes(), "png"
    if len(content) > LARGEST_PNG_BYTES:
        file = io.BytesIO()
        with Image.open(path) as opened:
            opened.convert("RGB").save(file, "JPEG", quality=85)
        content, kind = file.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def main() -> int:
    settle_streams()
    parser = argparse.ArgumentParser(
        prog="python -m learner.reporting.report", description="Write report.html of a run."
    )
    parser.add_argument("run_dir", type=user_path, help="output_dir of a run, or a folder of runs")
    try:
        print(write_report(parser.parse_args().run_dir))
    except (BoxloopError, OSError) as error:
        print(error, file=sys.stderr)
        return error.exit_code if isinstance(error, BoxloopError) else BoxloopError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Scores for the eye and for a file."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from learner.detection.agreement import Agreement
from learner.evaluation.coco_ap import ClassPrecision
from learner.evaluation.scoring import ClassScores, Scores
from learner.evaluation.tables import HEADLINES, NUM_CLASSES_SHOWN, print_scores, write_scores
from shared.metrics import METRICS

MANY = tuple(
    ClassScores(f"desc {number}", Agreement(4, 2, (1,) * 10), ClassPrecision(0.25, 0.5, 0.75))
    for number in range(NUM_CLASSES_SHOWN + 3)
)
SCORES = Scores(3, 8, {"eval_rollout_f1_iou50": 0.123, "eval_coco_ap_small": 0.5}, MANY)


def printed(scores: Scores) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_scores(scores, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_there_is_is_shown_and_what_there_is_not_is_left_out() -> None:
    text = printed(SCORES)
    assert "8 images" in text
    assert "0.123" in text
    assert "0.500 / – / –" in text
    assert "truncated" not in text


def test_the_most_frequent_descs_are_shown_and_the_others_counted() -> None:
    text = printed(SCORES)
    assert f"desc {NUM_CLASSES_SHOWN - 1} " in text
    assert f"desc {NUM_CLASSES_SHOWN} " not in text
    assert "and 3 descs with fewer objects" in text


def test_headlines_are_metrics() -> None:
    assert {name for names in HEADLINES.values() for name in names.split()} <= METRICS.keys()


def test_the_file_holds_every_metric_and_every_desc(tmp_path: Path) -> None:
    write_scores(SCORES, tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    assert (content["step"], content["num_images"], content["metrics"]) == (3, 8, dict(SCORES.metrics))
    assert len(content["classes"]) == len(MANY)
    assert content["classes"][0] == {
        "desc": "desc 0",
        "gt_objects": 2,
        "pred_objects": 4,
        "matched": 1,
        "precision": 0.25,
        "recall": 0.5,
        "f1": pytest.approx(1 / 3),
        "ap": 0.25,
        "ap50": 0.5,
        "ar100": 0.75,
    }


@pytest.mark.reported("tables cut at 80 columns")
def test_where_no_terminal_says_how_wide_it_is_nothing_is_cut() -> None:
    console = Console(file=io.StringIO(), width=80)
    long = replace(MANY[0], desc="a desc that is rather long, as people write them " * 2)
    print_scores(Scores(3, 8, SCORES.metrics, (long,)), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert f" {long.desc} " in text

"""The report is one page that holds a run's numbers and pictures and asks nothing of a network."""

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from learner.reporting.report import LARGEST_PNG_BYTES, data_uri, main, write_report
from learner.reporting.run_log import read_runs
from shared.errors import DataError

KEYS = ("f1", "f1_desc", "recall", "precision", "valid")
SUMMARY = {
    "arms": [
        {"name": name, "title": title, "steps": steps, "seconds": 2.0 * steps, **dict.fromkeys(KEYS, value)}
        for name, title, steps, value in (
            ("before", "before Stage 2", 0, 0.5), ("after", "rewards <R>", 60, 0.75), ("control", "teacher", 90, 0.625)
        )
    ],
    "about": "annotations that name half", "told": "When which is right.",
    "seconds": 300, "engine": "hf", "seed": 0, "versions": {"torch": "2.13"},
}  # fmt: skip


def step(number: int, channel: str, **metrics: float) -> dict[str, Any]:
    shares = {"share/learner_computing": 0.75, "share/learner_waiting_rollouts": 0.25}
    return {"step": number, "channel": channel, "loss": 1 / number, "time/step_s": 2.0, **shares, **metrics}


def run_at(folder: Path, *records: dict[str, Any]) -> Path:
    (folder / "pictures").mkdir(parents=True)
    (folder / "logging.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two A steps, one B step, an evaluation before and after, pictures of both, one dump."""
    folder = run_at(
        tmp_path / "my <run>",
        {"step": 0, "eval_rollout_f1_iou50": 0.4},
        step(1, "A"),
        step(2, "A"),
        step(3, "B", **{"rollout/recall": 0.5, "share/server_decoding": 0.5, "share/server_starved": 0.5}),
        {"step": 3, "eval_rollout_f1_iou50": 0.8},
    )
    for name in ("eval-000000-val-1", "eval-000003-val-1", "eval-000002-val-1", "rollout-000003-train-9"):
        Image.new("RGB", (8, 8)).save(folder / "pictures" / f"{name}.png")
    return folder


class Tags(HTMLParser):
    """Collects the page's tags, and checks that they nest."""

    VOID = frozenset({"meta", "img", "line", "circle", "polyline", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags_of(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    return parser.found


def test_the_page_is_well_formed_and_stands_alone(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    for tag, attributes in tags_of(page):
        assert tag not in ("link", "iframe")
        assert attributes.get("src", "data:").startswith("data:")  # type: ignore[union-attr]
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page


def test_names_from_outside_are_escaped(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert "my &lt;run&gt;" in page
    assert "<run>" not in page


def test_curves_are_drawn_for_the_metrics_that_were_logged(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    for title in ("Rollouts against ground truth", "Validation, IoU 0.5", "Loss"):
        assert f'aria-label="{title}"' in page
    assert 'aria-label="Learning rate"' not in page


def test_the_wall_time_of_both_processes_is_split(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert "computing <b>75%</b> 4.5 s" in page
    assert "waiting for rollouts <b>25%</b> 1.5 s" in page
    assert "starved <b>50%</b> 1.0 s" in page


def test_pictures_stand_side_by_side_before_and_after(run_dir: Path) -> None:
    captions = re.findall(r"<figure><figcaption>([^<]+)", write_report(run_dir).read_text())
    assert captions == ["val-1, after step 0", "val-1, after step 3", "train-9, after step 3"]


def test_a_folder_of_runs_is_told_in_order_with_its_summary(tmp_path: Path, run_dir: Path) -> None:
    run_at(tmp_path / "later", step(1, "A"))
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    page = write_report(tmp_path).read_text()
    assert re.findall(r'<h2 id="([^"]+)"', page) == ["my &lt;run&gt;", "later"]
    assert re.findall(r"<td>(\d\.\d+)(?:<small>([^<]+))?", page)[::5] == [
        ("0.500", ""),
        ("0.750", "+0.250"),
        ("0.625", "+0.125"),
    ]
    assert re.findall(r"<th>([^<]+)</th>(?:<td>(\d*)</td>){2}", page) == [
        ("before Stage 2", ""),
        ("rewards &lt;R&gt;", "120"),
        ("teacher", "180"),
    ]
    assert "When which is right." in page


def test_a_run_comes_before_those_in_its_subfolders(tmp_path: Path) -> None:
    run_at(tmp_path / "whole" / "stage1", step(1, "A"))
    (tmp_path / "whole" / "logging.jsonl").write_text(json.dumps(step(1, "B")) + "\n")
    assert [run.name for run in read_runs(tmp_path / "whole")] == ["whole", "stage1"]


def test_a_run_that_only_just_began_has_a_report(tmp_path: Path) -> None:
    assert 'id="young"' in write_report(run_at(tmp_path / "young")).read_text()


def test_seconds_count_every_step_that_a_record_stands_for(tmp_path: Path) -> None:
    run_at(tmp_path, step(5, "A", **{"time/forward_s": 0.5}), step(8, "B", **{"time/forward_s": 1.0}))
    (run,) = read_runs(tmp_path)
    assert run.seconds("time/forward_s") == 5 * 0.5 + 3 * 1.0
    assert run.seconds("share/learner_computing") == 8 * 2.0 * 0.75


def test_a_line_that_a_killed_run_left_unfinished_is_passed_over(tmp_path: Path) -> None:
    log = run_at(tmp_path, step(1, "A")) / "logging.jsonl"
    log.write_text(log.read_text() + '{"step": 2, "lo')
    assert [record.step for record in read_runs(tmp_path)[0].records] == [1]


def test_warnings_are_told_and_are_no_evaluations(tmp_path: Path) -> None:
    run_at(tmp_path, step(1, "A"), {"step": 1, "warning": "answers < grow"})
    (run,) = read_runs(tmp_path)
    assert (run.evaluations, len(run.warnings)) == ([], 1)
    assert "<li>After step 1: answers &lt; grow</li>" in write_report(tmp_path).read_text()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE_PX = 390
MEASURE = """<script>onload = () => {
  const page = document.querySelector("iframe").contentDocument.documentElement;
  document.title = `${page.clientWidth} ${page.scrollWidth} ${page.querySelectorAll("svg").length}`; }</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on PATH")
def test_on_a_phone_nothing_reaches_over_the_edge(tmp_path: Path) -> None:
    """In a frame as wide as a phone, because a window has a least width; what scrolls does so by itself."""
    names = ("rollout/recall", "rollout/pred_per_gt", "learning_rate", "rollout/gen_tokens_per_s", "grad_norm")
    whole = tmp_path / ("a-run-with-a-name-that-has-no-place-to-break-" * 2)
    run_at(
        whole,
        *(step(number, "AAB"[number % 3], **dict.fromkeys(names, 1e6 / number)) for number in range(1, 200)),
        {"step": 200, "warning": "x" * 100},
    )
    Image.new("RGB", (996, 548)).save(whole / "pictures" / f"eval-000000-{'val' * 30}.png")
    (whole / "summary.json").write_text(json.dumps(SUMMARY))
    page = write_report(whole).read_text()
    frame = f'<iframe style="border: 0; width: {PHONE_PX}px; height: 9000px" srcdoc="{escape(page)}"></iframe>'
    (tmp_path / "phone.html").write_text(f"<!doctype html><title></title>{frame}{MEASURE}")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    dom = subprocess.check_output(
        [str(CHROMIUM), *options, "--hide-scrollbars", f"--user-data-dir={tmp_path / 'chromium'}", "--dump-dom",
         (tmp_path / "phone.html").as_uri()],
        stderr=subprocess.DEVNULL, text=True, timeout=60,
    )  # fmt: skip
    shown, needed, num_charts = map(int, re.findall(r"<title>(.+?)</title>", dom)[0].split())
    assert (shown, needed) == (PHONE_PX, PHONE_PX)
    assert num_charts >= 6


def test_a_large_picture_is_embedded_as_jpeg(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > LARGEST_PNG_BYTES
    assert data_uri(tmp_path / "noise.png").startswith("data:image/jpeg;base64,")


def test_a_folder_without_a_run_and_a_broken_log_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"holds no logging\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "logging.jsonl").write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"logging\.jsonl:2: not a record"):
        write_report(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    assert main() == 2
    assert "logging.jsonl:2" in capsys.readouterr().err

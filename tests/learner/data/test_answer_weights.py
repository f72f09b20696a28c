"""The mean weight of an answer: over all records, or over so many of them, evenly spaced."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from learner.data.answer_weights import MOST_WEIGHED, mean_answer_weight
from learner.data.records import Reading, RecordSource


def source_of(tmp_path: Path, counts: list[int]) -> RecordSource:
    cup = {"desc": "cup", "bbox_2d": [1, 1, 9, 9]}
    lines = [json.dumps({"images": ["a.png"], "width": 64, "height": 48, "objects": [cup] * count}) for count in counts]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    source, _ = RecordSource.opened(tmp_path / "train.jsonl", Reading(check_images=False), seed=3)
    return source


def test_every_record_of_a_small_file_counts_once(tmp_path: Path) -> None:
    source = source_of(tmp_path, [0, 1, 5])
    assert mean_answer_weight(source, lambda record: 2.0 + 26 * len(record.objects)) == pytest.approx(2 + 26 * 2)


def test_it_is_at_least_one(tmp_path: Path) -> None:
    assert mean_answer_weight(source_of(tmp_path, [0]), lambda record: 0.0) == 1.0


def test_of_a_large_file_records_are_looked_at_that_lie_evenly(tmp_path: Path) -> None:
    seen: list[str] = []

    def weigh(record: object) -> float:
        seen.append(record.record_id)  # type: ignore[attr-defined]
        return 1.0

    mean_answer_weight(source_of(tmp_path, [0] * (3 * MOST_WEIGHED)), weigh)
    lines = [int(record_id.partition(":")[2]) for record_id in seen]
    assert len(lines) == len(set(lines)) == MOST_WEIGHED
    assert (lines[0], lines[-1]) == (1, 3 * MOST_WEIGHED)
    assert {later - earlier for earlier, later in pairwise(lines)} <= {2, 3, 4}

from collections import Counter

import pytest

from learner.detection.record import GroundTruthObject, Record
from learner.plan.planner import Planner
from learner.plan.schedule import Channel


def record_at(cursor: int) -> Record:
    objects = tuple(GroundTruthObject("cat", "bbox_2d", (0, 0, 10, 10)) for _ in range(cursor % 3))
    return Record(f"made:{cursor % 10}", (f"{cursor % 10}.png",), 128, 128, objects, {})


def planner(pattern: str = "AAB", a: int = 4, b: int = 6, groups: int = 1) -> Planner:
    return Planner(
        pattern=tuple(pattern),
        records_per_step={"A": a, "B": b},
        groups_per_step=groups,
        num_records=10,
        record_at=record_at,
    )


def test_each_record_of_an_epoch_is_taken_exactly_once_across_steps_of_different_sizes() -> None:
    plans, cursor = [], 0
    for step in range(9):  # three A, A, B cycles of 4 + 4 + 6 records
        plans.append(planner().plan(step, cursor))
        cursor = plans[-1].cursor
    seen = [record.record_id for plan in plans for record in plan.records]
    assert Counter(seen[:40]) == {f"made:{number}": 4 for number in range(10)}
    assert plans[-1].epoch == pytest.approx(4.2)


def test_groups_split_a_step_without_losing_order() -> None:
    plan = planner("B", b=6, groups=3).plan(0, 2)
    assert [len(group) for group in plan.groups] == [2, 2, 2]
    assert [record.record_id for record in plan.records] == [f"made:{n}" for n in (2, 3, 4, 5, 6, 7)]


def test_totals_count_the_ground_truth_and_never_divide_by_zero() -> None:
    assert planner("A", a=3).plan(0, 0).totals.num_boxes == 0 + 1 + 2
    empty = planner("A", a=1).plan(0, 0).totals
    assert (empty.num_samples, empty.num_boxes) == (1, 1)


def test_the_length_of_a_run_comes_from_walking_the_pattern() -> None:
    assert planner().num_steps(1) == 2  # 4 + 4 records; the B step of 6 would be short
    assert planner().num_steps(1.4) == 3
    assert planner().num_steps(0.3) == 0


def test_the_next_step_that_decodes_is_looked_for_no_further_than_asked() -> None:
    first = planner().plan(0, 0)
    assert planner().next_decoding(first, within=1) is None
    found = planner().next_decoding(first, within=2)
    assert found is not None
    assert (found.step, found.channel, found.cursor) == (2, Channel.B, 14)
    assert planner().next_decoding(found, within=0) is found

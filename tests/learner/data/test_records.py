"""Training order: every record once an epoch, in an order that seed and epoch fix."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from learner.data.records import Reading, RecordSource, read_all
from learner.detection.record import ReadCounts, RecordError, read_records
from shared.errors import DataError

BOX = {"desc": "cat", "bbox_2d": [2, 3, 20, 30]}
POLY = {"desc": "dog", "poly": [1, 1, 9, 1, 9, 8]}


def written(tmp_path: Path, objects: list[list[dict[str, Any]]]) -> Path:
    """A JSONL file with one line a list of objects."""
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    lines = [{"images": ["image.png"], "width": 40, "height": 40, "objects": each} for each in objects]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def opened(path: Path, seed: int | None = 1, limit: int | None = None, **reading: Any) -> RecordSource:
    return RecordSource.opened(path, Reading(**reading), seed=seed, limit=limit)[0]


def ids(source: RecordSource, start: int, stop: int) -> list[str]:
    return [source.record_at(cursor).record_id for cursor in range(start, stop)]


def test_each_epoch_holds_every_record_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    source = opened(written(tmp_path, [[BOX]] * 12))
    first, second = ids(source, 0, 12), ids(source, 12, 24)
    assert sorted(first) == sorted(second) == sorted(f"train:{number}" for number in range(1, 13))
    assert first != second


def test_a_run_resumes_at_any_record(tmp_path: Path) -> None:
    path = written(tmp_path, [[BOX]] * 7)
    whole = ids(opened(path), 0, 30)
    assert ids(opened(path), 17, 30) == whole[17:]
    assert ids(opened(path, seed=2), 0, 30) != whole


def test_without_a_seed_the_file_s_order_stays(tmp_path: Path) -> None:
    source = opened(written(tmp_path, [[BOX]] * 3), seed=None)
    assert ids(source, 0, 6) == ["train:1", "train:2", "train:3"] * 2
    assert [line.number for line in source.lines()] == [1, 2, 3]


def test_a_limit_takes_the_first_good_records_and_keeps_their_ids(tmp_path: Path) -> None:
    path = written(tmp_path, [[BOX], [{"desc": " ", "bbox_2d": [1, 1, 2, 2]}], [BOX], [BOX]])
    path.write_text("\n" + path.read_text())
    source = opened(path, limit=2, on_bad_record="skip")
    assert sorted(ids(source, 0, 2)) == ["train:2", "train:4"]


def test_a_bad_record_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    path = written(tmp_path, [[BOX], [BOX, {"desc": "x", "bbox_2d": [5, 5, 5, 9]}]])
    with pytest.raises(RecordError, match=r"train\.jsonl:2: object 1: .*x2 ≤ x1"):
        opened(path)


def test_skipped_records_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, [[BOX], [POLY], [{"desc": "", "bbox_2d": [1, 1, 2, 2]}]])
    with caplog.at_level(logging.WARNING):
        source, counts = RecordSource.opened(path, Reading(on_bad_record="skip"), seed=0)
    assert (source.num_records, counts.records, [error.line for error in counts.skipped]) == (1, 1, [2, 3])
    assert len(caplog.records) == 2


def test_a_polygon_is_refused_boxed_or_kept(tmp_path: Path) -> None:
    path = written(tmp_path, [[BOX, POLY]])
    with pytest.raises(RecordError, match=r"object 1: poly .*custom\.poly_as_bbox") as caught:
        opened(path)
    assert caught.value.object_index == 1
    assert {item.kind for item in opened(path, polygons="as_bbox").record_at(0).objects} == {"bbox_2d"}
    assert {item.kind for item in opened(path, polygons="keep").record_at(0).objects} == {"bbox_2d", "poly"}


def test_a_polygon_without_extent_is_counted_where_its_box_is_widened(tmp_path: Path) -> None:
    line, sliver = {"desc": "line", "poly": [1, 1, 9, 1, 5, 1]}, {"desc": "sliver", "bbox_2d": [2, 3, 2.01, 30]}
    path = written(tmp_path, [[BOX, POLY], [line, sliver], [line]])
    for polygons, limit, num_widened in (("as_bbox", None, 3), ("as_bbox", 2, 2), ("keep", None, 1)):
        source, counts = RecordSource.opened(path, Reading(polygons=polygons), seed=None, limit=limit)
        ids(source, 0, source.num_records)
        assert counts.widened == num_widened
    assert opened(path, seed=None, polygons="as_bbox").record_at(2).objects[0].bins == (25, 25, 225, 26)


def test_objects_are_sorted_or_shuffled_anew_each_epoch(tmp_path: Path) -> None:
    tops = {"f": 30, "b": 10, "d": 20, "a": 5, "c": 15, "e": 25}
    objects = [{"desc": desc, "bbox_2d": [1, top, 9, top + 5]} for desc, top in tops.items()]
    path = written(tmp_path, [objects])

    def order(cursor: int, ordering: str) -> str:
        return "".join(item.desc for item in opened(path, object_ordering=ordering).record_at(cursor).objects)

    assert order(0, "sorted") == "abcdef"
    shuffled = [order(cursor, "random") for cursor in range(4)]
    assert shuffled == [order(cursor, "random") for cursor in range(4)]
    assert len(set(shuffled)) > 1


def test_filtering_leaves_out_records_and_refuses_to_leave_none(tmp_path: Path) -> None:
    source = opened(written(tmp_path, [[], [BOX], [BOX, BOX]]), seed=None)
    assert ids(source.filtered(lambda line: line.number < 3), 0, 2) == ["train:1", "train:2"]
    with pytest.raises(DataError, match="none of its 3 records"):
        source.filtered(lambda line: False)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl: .*has no record"):
        opened(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for read in (opened, lambda path: read_all(path, Reading())):
        with pytest.raises(
            DataError, match=r"absent\.jsonl cannot be read: No such file .*; name an existing JSONL file"
        ):
            read(tmp_path / "absent.jsonl")


def line_of(width: int, *objects: dict[str, Any], **changes: Any) -> bytes:
    line = {"images": ["none.png"], "width": width, "height": 40, "objects": list(objects), **changes}
    return json.dumps(line, ensure_ascii=False).encode()


lines = st.one_of(
    st.builds(line_of, st.integers(0, 60), st.sampled_from([BOX, {"desc": "öl", "bbox_2d": [-0.5, 1, 5, 1.01]}])),
    st.builds(line_of, st.just(40), st.sampled_from([BOX, POLY, {**BOX, "desc": ""}]), st.sampled_from([POLY, BOX])),
    st.sampled_from([b"", b"  ", b"{", b"[1]", b"\xff", line_of(40, metadata=[]), line_of(40, metadata={"k": 1})]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines, max_size=12), st.sampled_from(["keep", "as_bbox", "error"]), st.sampled_from([None, 1, 3]))
def test_what_is_indexed_is_what_reading_the_file_gives(
    tmp_path: Path, texts: list[bytes], polygons: str, limit: int | None
) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(b"\n".join(texts))
    reading = Reading(check_images=False, on_bad_record="skip", polygons=polygons)  # type: ignore[arg-type]
    counts = ReadCounts()
    read = list(read_records(path, on_bad_record="skip", check_images=False, counts=counts))
    usable = [each for each in read if polygons != "error" or all(item.kind != "poly" for item in each.objects)]
    if not usable:
        with pytest.raises(DataError, match="no record to train on or evaluate"):
            RecordSource.opened(path, reading, seed=None, limit=limit)
        return
    source, found = RecordSource.opened(path, reading, seed=None, limit=limit)
    assert ids(source, 0, source.num_records) == [each.record_id for each in usable[:limit]]
    assert tuple(map(source.record_at, range(source.num_records))) == read_all(path, reading, limit)
    assert [(line.width, line.height) for line in source.lines()] == [(each.width, 40) for each in usable[:limit]]
    assert found.records == source.num_records
    if limit is None:
        assert len(found.skipped) == len(counts.skipped) + len(read) - len(usable)

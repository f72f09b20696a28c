"""Records are read as they stand or refused with file, line, object, rule and value."""

import json
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from learner.detection.geometry import bins_of_px, widened
from learner.detection.record import GroundTruthObject, ReadCounts, Record, RecordError, ordered, read_records
from learner.detection.record_rules import NO_OWN_PROMPT, BrokenRule, Changes, Rules

CAT = {"desc": "cat", "bbox_2d": [10, 20, 110, 220]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (200, 400)).save(tmp_path / "a.png")
    return tmp_path


def write(folder: Path, *records: Any) -> Path:
    path = folder / "train.jsonl"
    path.write_bytes(
        b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in records)
    )
    return path


def record(*objects: Any, **changes: Any) -> dict[str, Any]:
    return {"images": ["a.png"], "width": 200, "height": 400, "objects": list(objects), **changes}


def test_a_record_is_read_with_its_bins_and_resolved_image(folder: Path) -> None:
    poly = {"desc": "猫", "poly": [0, 0, 200, 0, 100, 400], "poly_points": 3}
    path = write(folder, record(CAT, poly, metadata={"k": [1]}, summary="two", messages=[]))
    assert list(read_records(path)) == [
        Record(
            record_id="train:1",
            images=(str(folder / "a.png"),),
            width=200,
            height=400,
            objects=(
                GroundTruthObject("cat", "bbox_2d", (50, 50, 549, 549)),
                GroundTruthObject("猫", "poly", (0, 0, 999, 0, 500, 999)),
            ),
            metadata={"k": [1]},
        )
    ]


def test_ids_are_line_numbers_and_blank_lines_count(folder: Path) -> None:
    path = write(folder, record(), b"\n", b"  \n", record(CAT))
    assert [item.record_id for item in read_records(path)] == ["train:1", "train:4"]


def test_reading_is_lazy(folder: Path) -> None:
    records = read_records(write(folder, record(CAT), b"{"))
    assert next(records).record_id == "train:1"
    with pytest.raises(RecordError):
        next(records)


def test_coordinate_tokens_and_norm1000_are_bins(folder: Path) -> None:
    tokens = {"desc": "cat", "bbox_2d": [f"<|coord_{bin}|>" for bin in (0, 7, 12, 999)]}
    bare = {"desc": "cat", "bbox_2d": [0, 7, 12, 999]}
    for space, item in (("px", tokens), ("norm1000", tokens), ("norm1000", bare)):
        (read,) = read_records(write(folder, record(item)), coordinate_space=space)  # type: ignore[arg-type]
        assert read.objects[0].bins == (0, 7, 12, 999)


def test_values_within_a_pixel_of_the_image_are_clamped_and_counted(folder: Path) -> None:
    counts = ReadCounts()
    path = write(folder, record({"desc": "cat", "bbox_2d": [-0.9, -1, 201, 400.5]}))
    assert next(read_records(path, counts=counts)).objects[0].bins == (0, 0, 999, 999)
    assert (counts.clamped, counts.widened, counts.records) == (4, 0, 1)


@pytest.mark.parametrize(
    ("box", "bins"),
    [
        ([10, 20, 10.01, 220], (50, 50, 51, 549)),
        ([199.99, 399.99, 200, 400], (998, 998, 999, 999)),
        ([200, 0, 201, 9], (998, 0, 999, 22)),
    ],
)
def test_a_box_without_extent_in_bins_is_widened_and_counted(
    folder: Path, box: list[float], bins: tuple[int, ...]
) -> None:
    counts = ReadCounts()
    (read,) = read_records(write(folder, record({"desc": "cat", "bbox_2d": box})), counts=counts)
    assert read.objects[0].bins == bins
    assert counts.widened == 1
    measured = Changes()
    Rules().measure(json.dumps(record(CAT, {"desc": "cat", "bbox_2d": box})).encode(), folder, measured)
    assert measured.widened == 1


BAD_OBJECTS = [
    ({"desc": "cat", "bbox": [1, 2, 3, 4]}, "unknown geometry.*'bbox', 'desc'"),
    ({"desc": "cat"}, "unknown geometry"),
    ({**CAT, "poly": [1, 2, 3, 4, 5, 6]}, "both geometries"),
    ({"desc": "cat", "bbox_2d": [1, 2, 3]}, "wrong arity.*got 3"),
    ({"desc": "cat", "poly": [1, 2, 3, 4]}, "wrong arity.*got 4"),
    ({"desc": "cat", "poly": [1, 2, 3, 4, 5, 6, 7]}, "wrong arity.*got 7"),
    ({"desc": "cat", "bbox_2d": "1 2 3 4"}, "must be a list"),
    ({"desc": "cat", "bbox_2d": [30, 2, 30, 4]}, "x2 ≤ x1.*30 ≤ 30"),
    ({"desc": "cat", "bbox_2d": [3, 40, 30, 4]}, "y2 ≤ y1.*4 ≤ 40"),
    ({"desc": "cat", "bbox_2d": ["<|coord_9|>", "<|coord_9|>", "<|coord_5|>", "<|coord_99|>"]}, "x2 ≤ x1.*5 ≤ 9"),
    ({"desc": "cat", "bbox_2d": [0, 0, 201.5, 4]}, r"x = 201.5 is outside the image \(0..200 px\)"),
    ({"desc": "cat", "bbox_2d": [0, -2, 20, 4]}, "y = -2 is outside"),
    ({"desc": "cat", "poly": [0, 0, 20, 402, 5, 5]}, "y = 402 is outside"),
    ({"desc": "cat", "bbox_2d": [0, "<|coord_9|>", 20, 30]}, "all numbers or all coordinate tokens"),
    ({"desc": "cat", "bbox_2d": [True, 0, 20, 30]}, "all numbers"),
    ({"desc": "cat", "bbox_2d": ["<|coord_1000|>"] * 4}, "not a coordinate token"),
    ({"desc": "cat", "bbox_2d": ["<|coord_01|>"] * 4}, "not a coordinate token"),
    ({"desc": " ", "bbox_2d": [0, 0, 20, 30]}, "non-blank string, got ' '"),
    ({"bbox_2d": [0, 0, 20, 30]}, "non-blank string, got None"),
    ({"desc": "a\tb", "bbox_2d": [0, 0, 20, 30]}, "control character"),
    ({"desc": "a<|im_end|>", "bbox_2d": [0, 0, 20, 30]}, r"special token <\|im_end\|>"),
    ("cat", "must be a JSON object"),
]


@pytest.mark.parametrize(("item", "reason"), BAD_OBJECTS)
def test_a_bad_object_is_refused_by_index(folder: Path, item: Any, reason: str) -> None:
    path = write(folder, record(), record(CAT, item))
    with pytest.raises(RecordError, match=reason) as caught:
        list(read_records(path, special_texts=frozenset({"<|im_end|>"})))
    assert (caught.value.path, caught.value.line, caught.value.object_index) == (str(path), 2, 1)
    assert str(caught.value).startswith(f"{path}:2: object 1: {caught.value.reason}")


@pytest.mark.parametrize("values", [[0, 7, 12, 1000], [0, 7, 12.0, 999], [-1, 7, 12, 999]])
def test_norm1000_takes_whole_bins_only(folder: Path, values: list[float]) -> None:
    with pytest.raises(RecordError, match="norm1000 takes whole numbers"):
        list(read_records(write(folder, record({"desc": "cat", "bbox_2d": values})), coordinate_space="norm1000"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"images": ["a.png"],\n', "bad JSON"),
        (b"[1]\n", "not an object"),
        (b'{"a": "\xff"}\n', "bad UTF-8: byte 0xff at byte 7"),
        (record(width=0), "width must be .* got 0"),
        (record(height="400"), "height must be"),
        (record(images=[]), "exactly one path"),
        (record(images=["a.png", "a.png"]), "exactly one path"),
        (record(images=["b.png"]), "missing image file .*b.png"),
        (record(images=["a\0.png"]), r"no path holds a zero byte, got 'a\\x00.png'"),
        (record(images=["train.jsonl"]), "unreadable image"),
        (record(width=400, height=200), "is 200x400 px, but the record says 400x200"),
        (record(objects=None), "objects must be a list"),
        (record(metadata=[1]), "metadata must be an object"),
    ],
)
def test_a_bad_record_is_refused_by_line(folder: Path, line: Any, reason: str) -> None:
    with pytest.raises(RecordError, match=reason) as caught:
        list(read_records(write(folder, record(CAT), line)))
    assert (caught.value.line, caught.value.object_index) == (2, None)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file without pixels: its header and `chunks` of (type, data)."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (header, *chunks, (b"IDAT", b""))
    )


@pytest.mark.parametrize(
    "file",
    [
        png(20_000, 20_000),
        png(200, 400, (b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))),
        png(200, 400)[:30],
    ],
    ids=["too many pixels", "a text that inflates", "cut off"],
)
def test_an_image_that_cannot_be_read_safely_is_a_bad_record(folder: Path, file: bytes) -> None:
    (folder / "b.png").write_bytes(file)
    counts = ReadCounts()
    path = write(folder, record(images=["b.png"]), record(CAT))
    (kept,) = read_records(path, on_bad_record="skip", counts=counts)
    assert kept.record_id == "train:2"
    assert [error.line for error in counts.skipped] == [1]
    assert counts.skipped[0].reason.startswith(f"unreadable image {folder / 'b.png'}: ")


def test_bad_records_can_be_skipped_and_are_listed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = ReadCounts()
    path = write(folder, record(CAT), b"{\n", record({"desc": ""}), record())
    with caplog.at_level(logging.WARNING):
        kept = list(read_records(path, on_bad_record="skip", counts=counts))
    assert [item.record_id for item in kept] == ["train:1", "train:4"]
    assert [error.line for error in counts.skipped] == [2, 3]
    assert len(caplog.records) == 2


def test_the_size_of_a_turned_image_is_that_of_its_upright_view(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(folder / "a.jpg", exif=exif)
    (read,) = read_records(write(folder, record(images=["a.jpg"])))
    assert (read.width, read.height) == (200, 400)


def test_polygons_are_kept_boxed_or_refused(folder: Path) -> None:
    flat, triangle = [1, 2, 19, 2, 8, 2], [10, 4, 18, 16, 4, 32]
    line = json.dumps(record(CAT, *({"desc": "cat", "poly": poly} for poly in (flat, triangle)))).encode()
    kept, changes = Rules().check(line, folder, Changes()), Changes()
    assert [len(bins) for _, _, bins in kept.objects] == [4, 6, 6]
    boxed = Rules(polygons="as_bbox").check(line, folder, changes)
    assert boxed.objects == [
        kept.objects[0],
        ("cat", "bbox_2d", (5, 5, 95, 6)),
        ("cat", "bbox_2d", (20, 10, 90, 80)),
    ]
    assert changes.widened == 1
    with pytest.raises(BrokenRule) as refused:
        Rules(polygons="error").check(line, folder, Changes())
    assert refused.value.object_index == 1
    assert "custom.poly_as_bbox" in refused.value.reason


def outcome(read: Callable[[bytes, Path, Changes], Any], *objects: Any) -> Any:
    """What reading a line of 200 x 400 px gives: its size and the changes, or the rule that it breaks."""
    changes = Changes()
    try:
        read(json.dumps(record(*objects)).encode(), Path(), changes)
    except BrokenRule as broken:
        return broken.reason, broken.object_index, changes
    return changes


@pytest.mark.parametrize("item", [item for item, _ in BAD_OBJECTS])
def test_a_line_that_is_only_measured_breaks_the_same_rules(item: Any) -> None:
    rules = Rules(special_texts=frozenset({"<|im_end|>"}), check_images=False)
    assert outcome(rules.measure, CAT, item) == outcome(rules.check, CAT, item) != Changes()


edges = st.sampled_from(
    [-1.5, -1, -0.5, -0.0, 0, 0.1, 0.2, 0.3, 1, 7, 7.3, 7.5, 199.7, 199.9, 200, 200.5, 201, 390, 400, 402]
)
entries = st.fixed_dictionaries(
    {"desc": st.sampled_from(["cat", "öl", "", " ", "a\x00", "<|im_end|>", "<|im", 3])},
    optional={"bbox_2d": st.lists(edges, min_size=4, max_size=4) | st.none(), "poly": st.just([1, 1, 9, 1, 9, 8])},
)


@settings(deadline=None, max_examples=500)
@given(st.lists(entries, max_size=3))
def test_measuring_a_line_finds_what_checking_it_finds(objects: list[dict[str, Any]]) -> None:
    rules = Rules(special_texts=frozenset({"<|im_end|>"}), check_images=False)
    assert outcome(rules.measure, *objects) == outcome(rules.check, *objects)


NUMBERS = st.one_of(st.integers(-3, 45), st.floats(-2, 43, allow_nan=False))


@settings(deadline=None, max_examples=300)
@given(st.lists(NUMBERS, min_size=4, max_size=4), st.integers(1, 40), st.integers(1, 40))
def test_a_box_has_the_bins_of_its_clamped_corners(values: list[float], width: int, height: int) -> None:
    """Against the rules as docs/data.md words them, value by value."""
    x1, y1, x2, y2 = values
    line = {"images": ["a.png"], "width": width, "height": height, "objects": [{"desc": "a", "bbox_2d": values}]}
    changes, rules = Changes(), Rules(check_images=False)
    is_inside = all(-1 <= value <= size + 1 for value, size in zip(values, (width, height) * 2, strict=True))
    if not (is_inside and x1 < x2 and y1 < y2):
        with pytest.raises(BrokenRule):
            rules.check(json.dumps(line).encode(), Path(), changes)
        return
    ((_, _, bins),) = rules.check(json.dumps(line).encode(), Path(), changes).objects
    clamped = [min(max(value, 0), size) for value, size in zip(values, (width, height) * 2, strict=True)]
    quantised = bins_of_px(clamped, width, height)
    assert bins == widened(quantised)
    num_outside = sum(value != inside for value, inside in zip(values, clamped, strict=True))
    assert (changes.clamped, changes.widened) == (num_outside, bins != quantised)
    measured = Changes()
    assert rules.measure(json.dumps(line).encode(), Path(), measured) == (width, height, ["a"], 4, NO_OWN_PROMPT)
    assert measured == changes


def test_a_record_may_ask_for_itself(folder: Path) -> None:
    path = write(
        folder, record(prompt="Find the\tcat.\n"), record(classes=["cat", "bow (weapon)"]), record(prompt=None)
    )
    first, second, third = read_records(path)
    assert (first.prompt, first.classes) == ("Find the\tcat.\n", ())
    assert (second.prompt, second.classes) == (None, ("cat", "bow (weapon)"))
    assert (third.prompt, third.classes) == (None, ())


@pytest.mark.parametrize(
    ("asking", "reason"),
    [
        ({"prompt": "Cats?", "classes": ["cat"]}, "both prompt and classes"),
        ({"prompt": " \n"}, "prompt must be a non-blank string"),
        ({"prompt": 7}, "prompt must be a non-blank string, got 7"),
        ({"prompt": "a\x00"}, "prompt 'a\\x00' has the control character"),
        ({"prompt": "where is <|special|>?"}, "has the text of the special token <|special|>"),
        ({"prompt": "Find {classes}."}, "prompt has {classes}, which is filled in custom.user_prompt alone"),
        ({"classes": []}, "classes must be a list of one name or more, got []"),
        ({"classes": "cat"}, "classes must be a list of one name or more, got 'cat'"),
        ({"classes": ["cat", ""]}, "classes[1] must be a non-blank string"),
        ({"classes": ["cat", 7]}, "classes[1] must be a non-blank string, got 7"),
        ({"classes": ["a\tb"]}, "classes[0] 'a\\tb' has the control character"),
        ({"classes": ["<|special|>"]}, "has the text of the special token <|special|>"),
    ],
)
def test_a_prompt_that_cannot_be_is_told(folder: Path, asking: dict[str, Any], reason: str) -> None:
    rules = Rules(special_texts=frozenset({"<|special|>"}))
    for way in (rules.check, rules.measure):
        with pytest.raises(BrokenRule) as broken:
            way(json.dumps(record(CAT, **asking)).encode(), folder, Changes())
        assert reason in broken.value.reason
        assert broken.value.object_index is None


def test_a_prompt_with_classes_needs_those_of_each_record_that_has_no_prompt(folder: Path) -> None:
    rules = Rules(needs_classes=True)
    for asking in ({"classes": ["cat"]}, {"prompt": "Cats?"}):
        rules.check(json.dumps(record(CAT, **asking)).encode(), folder, Changes())
    for way in (rules.check, rules.measure):
        with pytest.raises(BrokenRule) as broken:
            way(json.dumps(record(CAT)).encode(), folder, Changes())
        assert "custom.user_prompt has {classes} and the record has none; give each" in broken.value.reason


def test_objects_are_ordered_by_top_then_left_with_ties_as_given() -> None:
    a, b, c, d = (
        GroundTruthObject(desc, "bbox_2d", (x, y, 900, 900))
        for desc, x, y in (("a", 5, 7), ("b", 1, 7), ("c", 800, 2), ("d", 5, 7))
    )
    poly = GroundTruthObject("p", "poly", (400, 7, 3, 500, 900, 900))
    assert ordered((a, b, c, poly, d)) == (c, b, poly, a, d)
    shuffled = ordered((a, b, c, d), "random", seed="1:train:1")
    assert sorted(item.desc for item in shuffled) == ["a", "b", "c", "d"]
    assert shuffled == ordered((a, b, c, d), "random", seed="1:train:1")
    assert len({ordered((a, b, c, d), "random", seed=seed) for seed in range(20)}) > 1

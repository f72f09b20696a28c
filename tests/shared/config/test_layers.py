from pathlib import Path

import pytest

from shared.config.layers import read_layers
from shared.config.overrides import parse_overrides
from shared.errors import ConfigError


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "top.yaml"


def test_later_files_win_key_by_key_and_lists_are_replaced(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        one="a: {x: 1, y: 1}\nlist: [1, 2]\n",
        two="a: {y: 2}\n",
        top="extends: [one.yaml, two.yaml]\na: {z: 3}\nlist: [9]\n",
    )
    assert read_layers(top).values == {"a": {"x": 1, "y": 2, "z": 3}, "list": [9]}


def test_origin_is_the_file_and_line_of_the_winning_value(tmp_path: Path) -> None:
    top = write(tmp_path, one="a:\n  x: 1\n  y: 1\n", top="extends: one.yaml\na:\n  y: 2\n")
    layer = read_layers(top).under(parse_overrides(["a.z=5"]))
    assert layer.origins["a.x"] == f"{tmp_path / 'one.yaml'}:2"
    assert layer.origins["a.y"] == f"{top}:3"
    assert layer.origins["a.z"] == "command line"


def test_a_replaced_section_leaves_no_origins_behind(tmp_path: Path) -> None:
    top = write(tmp_path, one="a:\n  x: 1\n", top="extends: one.yaml\na: 3\n")
    assert read_layers(top).origins == {"a": f"{top}:2"}


def test_a_diamond_is_allowed(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        root="a: 1\nb: 1\n",
        left="extends: root.yaml\na: 2\n",
        right="extends: root.yaml\nb: 2\n",
        top="extends: [left.yaml, right.yaml]\n",
    )
    assert read_layers(top).values == {"a": 1, "b": 2}


def test_a_cycle_names_its_files(tmp_path: Path) -> None:
    top = write(tmp_path, one="extends: top.yaml\n", top="extends: one.yaml\n")
    with pytest.raises(ConfigError, match=r"circle.*top\.yaml -> .*one\.yaml -> .*top\.yaml"):
        read_layers(top)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", r"top\.yaml:2: `a` stands twice"),
        ("a: [1\n", "not valid YAML"),
        ("- a\n", "top level"),
        ("extends: {a: 1}\n", r"top\.yaml:1: `extends`"),
        ("extends: nowhere.yaml\n", r"cannot read .*nowhere\.yaml"),
        ("a: 1\nb: {c: [1, 2024-13-45]}\n", r"top\.yaml:2: month must be in 1..12; put the value into quotes"),
        ("a: 1\nb: 0b_\n", r"top\.yaml:2: .*quotes"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_layers(write(tmp_path, top=text))


def test_overrides_are_yaml_and_the_last_wins() -> None:
    values = parse_overrides(["a.b=[A, B]", "a.c=1", "a.c=null", "d=x=y"]).values
    assert values == {"a": {"b": ["A", "B"], "c": None}, "d": "x=y"}


@pytest.mark.parametrize("override", ["a.b", "=1", "a..b=1"])
def test_an_override_that_is_none_is_quoted(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides([override])
    assert repr(override) in str(caught.value)


def test_a_value_that_is_no_yaml_is_quoted() -> None:
    with pytest.raises(ConfigError, match=r"a\.b='\[1' is not valid YAML"):
        parse_overrides(["a.b=[1"])


def test_a_value_that_looks_like_a_date_and_is_none_is_told_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"training\.seed: '2024-13-45' cannot be read: month .*quotes"):
        parse_overrides(["training.seed=2024-13-45"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    text = "global_max_length: 7\nmodel: {model: ü}\n"
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "marked.yaml").write_bytes((mark + text).encode(encoding))
    assert read_layers(tmp_path / "marked.yaml").values == {"global_max_length": 7, "model": {"model": "ü"}}

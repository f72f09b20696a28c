from pathlib import Path

import pytest

from shared.metrics import METRICS, SECTIONS, catalogue_page, metric_named

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_printed_page_is_the_catalogue() -> None:
    assert PAGE.read_text() == catalogue_page() + "\n", "run: python -m shared.metrics > docs/metrics.md"


def test_no_name_stands_twice() -> None:
    assert len(METRICS) == sum(len(section) for section in SECTIONS.values())


def test_exactly_the_ratios_have_a_denominator() -> None:
    assert all((metric.reduction == "ratio") == bool(metric.denominator) for metric in METRICS.values())


def test_a_drop_reason_is_found_by_its_family() -> None:
    assert metric_named("rollout/parse_dropped_bad_json").name == "rollout/parse_dropped_<reason>"
    assert metric_named("rollout/parse_dropped_invalid").name == "rollout/parse_dropped_invalid"


@pytest.mark.parametrize("name", ["rollout/nonsense", "loss/ce_dropped_x", "rollout/parse_dropped_"])
def test_a_name_outside_the_catalogue_is_an_error(name: str) -> None:
    with pytest.raises(KeyError):
        metric_named(name)


def test_prometheus_names_have_no_slash() -> None:
    assert METRICS["rollout/f1"].prometheus_name == "rollout_f1"

"""The kinds of optimizer step that `schedule.pattern` may name; all that is known of them without a model."""

from collections.abc import Mapping

DECODES: Mapping[str, bool] = {"A": False, "B": True, "R": True}
"""The letters, and whether a step of that kind learns from answers that servers decode."""

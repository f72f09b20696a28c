"""Where a growing answer decides between ending and going on. Pure."""

from collections.abc import Sequence

from shared.wire import StopDecision


class DecisionPlaces:
    """The places of a `StopDecision`, made once for an answer that grows."""

    def __init__(self, decision: StopDecision) -> None:
        *self._start, self._ends_at_start = decision.at_start
        *self._behind, self._ends_behind = decision.behind_coordinate
        self._coordinates = frozenset(decision.coordinate_ids)

    def ending_id(self, token_ids: Sequence[int]) -> int | None:
        """The id that would end the answer behind `token_ids`, where the next one decides on that."""
        lead = len(self._behind)
        if len(token_ids) > lead and token_ids[-lead - 1] in self._coordinates:
            return self._ends_behind if list(token_ids[len(token_ids) - lead :]) == self._behind else None
        at_start = len(token_ids) == len(self._start) and list(token_ids) == self._start
        return self._ends_at_start if at_start else None

"""A transport has the same name wherever it stands."""

from typing import get_args

from learner.weight_sync.table import OUTLETS
from rollout_server.weights.table import INLETS
from shared.config.rollout import SyncSection
from shared.weight_wire import Transport


def test_both_sides_the_wire_and_the_configuration_know_the_same_transports() -> None:
    words = set(get_args(Transport))
    assert set(OUTLETS) == set(INLETS) == words
    assert set(get_args(SyncSection.model_fields["transport"].annotation)) == words


def test_each_side_is_listed_under_its_own_name() -> None:
    for table in (OUTLETS, INLETS):
        assert {name: each.name for name, each in table.items()} == {name: name for name in table}

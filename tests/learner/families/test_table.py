"""The table of families that can be trained."""

from learner.families.table import FAMILIES
from shared.families.table import FACTS


def test_every_family_can_be_trained_and_knows_its_own_facts() -> None:
    assert {name: family.facts for name, family in FAMILIES.items()} == FACTS

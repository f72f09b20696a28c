"""A term of the loss stands in three places, and whoever forgets one of them is told which."""

import pytest

from learner.detection.targets import TargetWeights
from learner.losses.terms import PER, TERMS, Term
from shared.config.stage2 import Stage2Section
from shared.metrics import METRICS

WEIGHTS = {name for name in Stage2Section.model_fields if name.endswith("_weight")}
OF_TARGETS = {name for name in TargetWeights.__dataclass_fields__ if name.endswith("_weight")}


@pytest.mark.parametrize("term", [term for term in TERMS if term.weight], ids=lambda term: term.weight)
def test_a_term_has_a_key_for_its_weight(term: Term) -> None:
    assert f"{term.weight}_weight" in WEIGHTS, f"stage2_ab has no key {term.weight}_weight; see shared/config/stage2.py"


@pytest.mark.parametrize("key", sorted(WEIGHTS - OF_TARGETS))
def test_a_weight_has_a_term(key: str) -> None:
    assert key.removesuffix("_weight") in {term.weight for term in TERMS}, (
        f"learner/losses/terms.py has no row of {key}"
    )


def test_what_the_loss_is_made_of_is_in_the_catalogue_and_nothing_else_is() -> None:
    listed = {name for name in METRICS if name.startswith("loss/")}
    assert not set(PER) - set(METRICS), f"shared/metrics.py lacks {sorted(set(PER) - set(METRICS))}"
    assert not listed - set(PER), f"learner/losses/terms.py has no row of {sorted(listed - set(PER))}"


def test_terms_that_share_a_metric_are_summed_over_the_same_and_logged_with_their_weights() -> None:
    for metric in PER:
        rows = [term for term in TERMS if term.metric == metric]
        assert len({term.per for term in rows}) <= 1, metric
        assert len(rows) < 2 or all(term.logs_weighted for term in rows), metric

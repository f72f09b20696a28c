from shared.health import live, ready, reasons
from shared.wire import ComponentHealth

UP = ComponentHealth(name="weights", live=True, ready=True)
LOADING = ComponentHealth(name="engine", live=True, ready=False, reason="loading")
DEAD = ComponentHealth(name="engine", live=False, ready=False, reason="out of memory")


def test_a_component_that_is_still_loading_is_live_but_not_ready() -> None:
    assert live([UP, LOADING]).ok
    assert not ready([UP, LOADING]).ok


def test_one_failed_component_makes_the_process_neither() -> None:
    assert not live([UP, DEAD]).ok
    assert not ready([UP, DEAD]).ok


def test_reasons_name_only_what_stands_in_the_way() -> None:
    assert reasons(ready([UP, LOADING])) == "engine: loading"
    assert reasons(ready([UP])) == ""

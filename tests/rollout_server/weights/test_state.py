from collections.abc import Callable
from dataclasses import replace

import pytest

from rollout_server.refusal import Refusal
from rollout_server.weights.state import WeightState
from shared.weight_wire import SyncMode, TensorSpec, Transport, WeightManifest
from shared.wire import PolicyVersion

OLD, NEW = PolicyVersion(incarnation="ab", step=1), PolicyVersion(incarnation="ab", step=2)


def manifest(version: PolicyVersion, mode: SyncMode = "full", transport: Transport = "file") -> WeightManifest:
    tensor = TensorSpec(name="w", shape=(1,), dtype="float32", num_bytes=4)
    return WeightManifest(
        policy_version=version, mode=mode, transport=transport, tensors=(tensor,), num_bytes=4, digest="00", folder="v"
    )


Step = Callable[[WeightState], WeightState]
STEPS: dict[str, Step] = {
    "prepare": lambda state: state.prepared(manifest(NEW)),
    "commit": lambda state: state.committing(NEW),
    "abort": lambda state: state.aborted(NEW),
    "abort of another": lambda state: state.aborted(OLD),
}
STATES = {
    "serving": WeightState(held=OLD),
    "staging": WeightState(held=OLD, staged=manifest(NEW)),
    "loading": WeightState(held=OLD, staged=manifest(NEW), loading=True),
    "tainted": WeightState(tainted=True),
    "tainted, staged": WeightState(tainted=True, staged=manifest(NEW)),
}


@pytest.mark.parametrize(
    ("state", "step", "phase"),
    [
        ("serving", "prepare", "staging"),
        ("serving", "commit", "not_prepared"),
        ("serving", "abort", "serving"),
        ("staging", "prepare", "staging"),
        ("staging", "commit", "loading"),
        ("staging", "abort", "serving"),
        ("staging", "abort of another", "staging"),
        ("loading", "prepare", "loading refused"),
        ("loading", "commit", "loading refused"),
        ("loading", "abort", "loading refused"),
        ("tainted", "prepare", "tainted"),
        ("tainted", "commit", "not_prepared"),
        ("tainted", "abort", "tainted"),
        ("tainted, staged", "commit", "loading"),
        ("tainted, staged", "abort", "tainted"),
    ],
)
def test_a_request_moves_the_state_or_is_refused(state: str, step: str, phase: str) -> None:
    try:
        outcome = STEPS[step](STATES[state]).phase
    except Refusal as refusal:
        outcome = "loading refused" if refusal.body.code == "loading" else refusal.body.code
    assert outcome == phase


@pytest.mark.parametrize(
    ("ending", "phase", "held", "staged"),
    [
        (WeightState.loaded, "serving", NEW, None),
        (WeightState.forgotten, "serving", OLD, None),
        (WeightState.postponed, "staging", OLD, NEW),
        (WeightState.failed, "tainted", None, None),
    ],
)
def test_a_load_ends_with_the_new_the_old_or_no_weights(ending: Step, phase: str, held: object, staged: object) -> None:
    status = ending(STATES["loading"]).status()
    assert (status.phase, status.policy_version, status.staged) == (phase, held, staged)


def test_a_tainted_server_is_healed_by_a_load_and_by_nothing_less() -> None:
    tainted = STATES["tainted, staged"]
    assert tainted.committing(NEW).forgotten().phase == "tainted"
    assert tainted.committing(NEW).loaded() == WeightState(held=NEW)


def test_only_what_was_prepared_can_be_committed() -> None:
    with pytest.raises(Refusal, match="ab@1, but ab@2 is prepared") as caught:
        STATES["staging"].committing(OLD)
    assert caught.value.status == 409
    assert caught.value.body.policy_version == OLD


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (WeightState(held=OLD), None),
        (WeightState(), "needs weights of incarnation ab, held is the checkpoint"),
        (WeightState(held=PolicyVersion(incarnation="xy", step=1)), "needs weights of incarnation ab, held is xy@1"),
        (WeightState(tainted=True), "tainted"),
    ],
    ids=["same learner", "checkpoint", "another learner", "tainted"],
)
def test_a_merged_update_needs_whole_weights_of_its_learner(state: WeightState, reason: str | None) -> None:
    obstacle = state.obstacle(manifest(NEW, mode="merged"))
    assert obstacle is None if reason is None else reason in str(obstacle)
    assert state.obstacle(manifest(NEW)) is None


def test_chunks_are_taken_for_a_prepared_update_that_comes_in_chunks_alone() -> None:
    staged = WeightState(staged=manifest(NEW, transport="http"))
    staged.check_receiving(takes_chunks=True)
    for state, takes_chunks in ((WeightState(), True), (staged, False), (replace(staged, loading=True), True)):
        with pytest.raises(Refusal) as caught:
            state.check_receiving(takes_chunks)
        assert caught.value.status == 409

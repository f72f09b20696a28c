"""Decoding ahead of the loop, over a real server that answers what a script says."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from learner.decoding.ahead import DecodingRules, check_version
from learner.run import Run
from learner.train import train
from learner.types import Rollout, RolloutRequest
from shared.errors import ProtocolError, ServerUnavailable
from shared.wire import PolicyVersion

LAG = "custom.extra.rollout_matching.max_lag"
PATTERN = "custom.extra.stage2_ab.schedule.pattern"

Opened = Callable[..., AbstractAsyncContextManager[Run]]


def logged(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "run" / "logging.jsonl").read_bytes().splitlines()]


async def trained(run: Run) -> None:
    with anyio.fail_after(60):
        await train(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "max_lag", "lags"),
    [
        ("[A,A,B]", 0, {3: 0, 6: 0}),
        ("[A,A,B]", 1, {3: 1, 6: 1}),
        ("[A,A,B]", 2, {3: 2, 6: 2}),
        ("[A,A,B]", 9, {3: 2, 6: 2}),
        ("[B,A,B]", 2, {1: 0, 3: 1, 4: 0, 6: 1}),
    ],
)
async def test_answers_are_as_old_as_allowed_but_not_from_before_the_last_b_step(
    opened: Opened, tmp_path: Path, pattern: str, max_lag: int, lags: dict[int, int]
) -> None:
    async with opened("training.max_steps=6", f"{PATTERN}={pattern}", f"{LAG}={max_lag}") as run:
        await trained(run)
    records = logged(tmp_path)
    assert {line["step"]: line["stage2/policy_lag"] for line in records if line["channel"] == "B"} == lags
    trained_ids = [orjson.loads(line)["trained"] for line in (tmp_path / "run" / "ledger.jsonl").open()]
    assert len({name for step in trained_ids for name in step}) == 24


@pytest.mark.slow
async def test_with_a_lag_servers_decode_while_a_steps_are_learned(opened: Opened, tmp_path: Path) -> None:
    delays = {f"train:{number}": 0.5 for number in range(1, 65)}
    async with opened("training.max_steps=3", f"{LAG}=2", delays=delays) as run:
        await trained(run)
    first, _, b_step = logged(tmp_path)
    assert first["channel"] == "A"
    assert first["share/server_decoding"] > 0.3
    assert first["time/sync_s"] > 0
    assert b_step["time/sync_s"] == 0
    assert b_step["time/rollout_generate_s"] > 0.5
    assert b_step["time/rollout_wait_s"] < b_step["time/rollout_generate_s"]
    for record in logged(tmp_path):
        for side in ("learner", "server"):
            shares = [value for name, value in record.items() if name.startswith(f"share/{side}_")]
            assert sum(shares) == pytest.approx(1, abs=1e-9)


@pytest.mark.slow
async def test_an_evaluation_waits_for_what_is_decoded_ahead(opened: Opened, tmp_path: Path) -> None:
    keys = ("training.max_steps=6", f"{LAG}=2", "training.eval_strategy=steps", "training.eval_steps=1")
    delays = {f"train:{number}": 0.2 for number in range(1, 65)}
    async with opened(*keys, delays=delays) as run:
        await trained(run)
    records = logged(tmp_path)
    assert len([line for line in records if "channel" not in line]) == 6
    assert [line["stage2/policy_lag"] for line in records if line.get("channel") == "B"] == [2, 2]
    assert all(line["time/between_steps_s"] > 0 for line in records if line["step"] > 1 and "channel" in line)


@pytest.mark.slow
async def test_a_server_that_is_lost_ahead_of_the_loop_ends_the_run(opened: Opened) -> None:
    dead = {f"train:{number}": "die" for number in range(1, 65)}
    key = "custom.extra.rollout_matching.vllm.server.timeout_s=0.5"
    pattern = f"{PATTERN}={['A'] * 299 + ['B']}"
    async with opened("training.max_steps=300", pattern, f"{LAG}=299", key, faults=dead) as run:
        with pytest.raises(ServerUnavailable):
            await trained(run)
        assert 0 <= run.progress.step < 299


@pytest.mark.slow
async def test_a_resumed_run_decodes_again_by_the_weights_it_resumes_with(opened: Opened, tmp_path: Path) -> None:
    keys = ("training.max_steps=3", f"{LAG}=2", "training.save_steps=1")
    delays = {f"train:{number}": 0.3 for number in range(1, 65)}
    async with opened(*keys, delays=delays) as run:
        run.reporting.sinks.append = lambda record: setattr(run.progress, "stop_requested", True)  # type: ignore[method-assign]
        await trained(run)
        assert run.progress.step == 1
    async with opened(*keys, "training.resume_from_checkpoint=true", delays=delays) as run:
        await trained(run)
    assert [(line["step"], line.get("stage2/policy_lag")) for line in logged(tmp_path)] == [(2, None), (3, 1)]


@pytest.mark.slow
async def test_nothing_is_decoded_beyond_the_end(opened: Opened, tmp_path: Path) -> None:
    async with opened("training.max_steps=5", f"{LAG}=2") as run:
        await trained(run)
    decoding = [line["share/server_decoding"] > 0 for line in logged(tmp_path)]
    assert decoding[3:] == [False, False]


def rollout(request: RolloutRequest, incarnation: str, step: int) -> Rollout:
    version = PolicyVersion(incarnation=incarnation, step=step)
    return Rollout(request, (1,), "stop", version, token_logprobs=None, queue_s=0.0, decode_s=0.0, arrived_at=0.0)


def test_an_answer_may_be_as_old_as_max_lag_and_no_older(
    requests_of: Callable[[int], list[RolloutRequest]],
) -> None:
    (request,) = requests_of(1)
    asked = PolicyVersion(incarnation="a", step=3)
    for held, max_lag in ((5, 0), (3, 2), (4, 2)):
        check_version(rollout(request, "a", held), 5, asked, max_lag)
    for incarnation, held in (("a", 2), ("a", 6), ("b", 5)):
        with pytest.raises(ProtocolError, match="at most max_lag 2 steps old"):
            check_version(rollout(request, incarnation, held), 5, asked, max_lag=2)


def test_the_user_is_told_how_old_answers_may_be() -> None:
    assert "strictly on-policy" in DecodingRules(0, 9).describe(["A", "A", "B"])
    assert "from 2 optimizer steps before it on" in DecodingRules(0, 9, max_lag=2).describe(["A", "A", "B"])
    assert "from 0 or 1 optimizer steps before it on" in DecodingRules(0, 9, max_lag=3).describe(["B", "A", "B"])

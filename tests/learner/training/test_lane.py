"""The compute lane: one thread, calls in order, nothing left running behind a caller's back."""

import threading
import time

import anyio
import pytest

from learner.plan.time_split import LearnerActivity
from learner.training.lane import ComputeLane
from shared.accounting import TimeAccount


async def test_calls_run_in_order_on_one_thread_of_their_own() -> None:
    ran: list[int] = []
    threads: set[str] = set()

    def work(number: int) -> None:
        threads.add(threading.current_thread().name)
        ran.append(number)

    with ComputeLane() as lane:
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(lane, work, number)
    assert ran == list(range(20))
    assert len(threads) == 1
    assert threading.current_thread().name not in threads


async def test_the_event_loop_goes_on_meanwhile() -> None:
    go = threading.Event()
    with ComputeLane() as lane:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lane, go.wait, 5)
            await anyio.sleep(0.01)
            go.set()
    assert go.is_set()


async def test_an_error_reaches_its_caller_and_the_lane_goes_on() -> None:
    with ComputeLane() as lane:
        with pytest.raises(ZeroDivisionError):
            await lane(divmod, 1, 0)
        assert await lane(divmod, 7, 2) == (3, 1)


async def test_a_caller_that_is_cancelled_leaves_when_its_call_has_ended() -> None:
    started, ended = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        time.sleep(0.1)
        ended.set()

    with ComputeLane() as lane:
        with anyio.move_on_after(0.03) as scope:
            await lane(work)
        assert scope.cancelled_caught
        assert started.is_set()
        assert ended.is_set()


async def test_a_call_whose_turn_has_not_come_is_taken_back() -> None:
    ran: list[str] = []
    go = threading.Event()
    with ComputeLane() as lane:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lane, go.wait, 5)
            await anyio.sleep(0.01)
            with anyio.move_on_after(0.01):
                await lane(ran.append, "never")
            go.set()
        assert await lane(len, "abc") == 3
    assert ran == []


async def test_busy_seconds_are_those_of_the_calls_inside_the_window() -> None:
    with ComputeLane() as lane:
        before = time.monotonic()
        await lane(time.sleep, 0.05)
        between = time.monotonic()
        await anyio.sleep(0.03)
        await lane(time.sleep, 0.02)
        after = time.monotonic()
        assert 0.05 <= lane.busy_s(before, between) <= between - before
        assert 0.07 <= lane.busy_s(before, after) <= after - before - 0.03
        assert lane.busy_s(before + 0.02, before + 0.03) == pytest.approx(0.01)
        assert lane.busy_s(after, after + 1) == 0


async def test_an_account_is_told_of_every_call() -> None:
    account = TimeAccount(LearnerActivity)
    with ComputeLane(account) as lane, account.doing(LearnerActivity.WAITING_ROLLOUTS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lane, time.sleep, 0.03)
            tasks.start_soon(lane, time.sleep, 0.03)
        with pytest.raises(ZeroDivisionError):
            await lane(lambda: 1 // 0)
        await anyio.sleep(0.02)
    seconds = account.seconds()
    assert seconds[LearnerActivity.COMPUTING] >= 0.06
    assert seconds[LearnerActivity.WAITING_ROLLOUTS] >= 0.02

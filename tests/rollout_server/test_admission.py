import asyncio

import pytest

from rollout_server.admission import Activity, Admission
from rollout_server.refusal import Refusal
from rollout_server.settings import limits_for
from shared.accounting import TimeAccount


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_open_batches_are_decoding_time_and_a_shut_door_is_syncing_time() -> None:
    clock = Clock()
    account = TimeAccount(Activity, clock)
    admission = Admission(limits_for(256, 4), account)

    async def story() -> None:
        clock.now = 1.0
        admission.admit("a", 2)
        clock.now = 4.0
        admission.release("a")
        await admission.shut("loading")
        clock.now = 6.0
        admission.reopen()

    asyncio.run(story())
    assert account.seconds() == {Activity.IDLE: 1.0, Activity.DECODING: 3.0, Activity.SYNCING: 2.0}


async def test_a_door_that_shuts_waits_for_the_open_batches_and_lets_nobody_in() -> None:
    admission = Admission(limits_for(256, 4), TimeAccount(Activity))
    admission.admit("a", 1)
    shutting = asyncio.create_task(admission.shut("loading ab@2", 5.0))
    await asyncio.sleep(0.01)
    assert not shutting.done()
    with pytest.raises(Refusal, match="loading ab@2"):
        admission.admit("b", 1)
    admission.release("a")
    await shutting
    admission.reopen()
    admission.admit("b", 1)


async def test_batches_that_do_not_end_keep_the_door_open() -> None:
    admission = Admission(limits_for(256, 4), TimeAccount(Activity))
    admission.admit("a", 3)
    with pytest.raises(Refusal, match="3 samples of 1 batches"):
        await admission.shut("loading", 0.01)
    admission.admit("b", 1)
    assert admission.open_samples == 4

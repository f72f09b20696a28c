from enum import Enum

import pytest

from shared.accounting import TimeAccount


class Doing(Enum):
    WORK = "work"
    WAIT = "wait"
    NOTHING = "nothing"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def to(self, now: float) -> None:
        self.now = now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_of_what_goes_on_at_once_the_first_is_booked(clock: Clock) -> None:
    account = TimeAccount(Doing, clock)
    clock.to(1.0)
    with account.doing(Doing.WAIT):
        clock.to(3.0)
        account.begin(Doing.WORK)
        account.begin(Doing.WORK)
        clock.to(4.0)
        account.end(Doing.WORK)
        clock.to(7.0)
        account.end(Doing.WORK)
        clock.to(9.0)
    clock.to(10.0)
    assert account.seconds() == {Doing.WORK: 4.0, Doing.WAIT: 4.0, Doing.NOTHING: 2.0}


def test_laps_add_up_to_all_seconds_since_the_start(clock: Clock) -> None:
    account = TimeAccount(Doing, clock)
    account.begin(Doing.WORK)
    clock.to(2.0)
    assert account.lap() == {Doing.WORK: 2.0, Doing.WAIT: 0.0, Doing.NOTHING: 0.0}
    clock.to(3.0)
    account.end(Doing.WORK)
    clock.to(7.0)
    assert account.lap() == {Doing.WORK: 1.0, Doing.WAIT: 0.0, Doing.NOTHING: 4.0}
    assert sum(account.seconds().values()) == 7.0


def test_an_activity_ends_with_its_block_whatever_happens(clock: Clock) -> None:
    account = TimeAccount(Doing, clock)
    with pytest.raises(KeyError), account.doing(Doing.WORK):
        raise KeyError
    clock.to(5.0)
    assert account.seconds()[Doing.NOTHING] == 5.0
    with pytest.raises(ValueError, match="does not go on"):
        account.end(Doing.WORK)

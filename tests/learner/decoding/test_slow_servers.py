"""Servers that lag, freeze or refuse, and readers that are slow: each holds up itself alone."""

import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing

import anyio
import httpx
import pytest

from learner.decoding.pool import RolloutPool, window_of
from learner.servers.rollouts import RolloutServer
from learner.types import RolloutRequest
from rollout_server.settings import limits_for
from shared.errors import ServerUnavailable
from shared.wire import Sampling
from tests.learner.decoding.test_recovery import all_of, assert_each_once, line_to

pytestmark = pytest.mark.slow

RequestsOf = Callable[[int], list[RolloutRequest]]
FAST, SLOW = {"seconds_per_token": 0.005}, {"seconds_per_token": 0.5}
"""30 ms and 3 s an answer."""


@pytest.fixture
def frozen() -> Iterator[str]:
    """The address of a server that takes connections and says nothing, as a stopped process does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("max_num_seqs", [4, 64])
async def test_a_slow_server_slows_only_itself(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling, max_num_seqs: int
) -> None:
    limits = limits_for(256, max_num_seqs)
    with serving(scripted(FAST, limits=limits)) as fast, serving(scripted(SLOW, limits=limits)) as slow:
        async with fast.client() as to_fast, slow.client() as to_slow:
            servers = [RolloutServer(to_fast, 5.0), RolloutServer(to_slow, 5.0)]
            pool = RolloutPool(servers, sampling, windows=[window_of(limits)] * 2)
            requests, started = requests_of(40), time.monotonic()
            assert_each_once(await all_of(pool, requests), 40)
            assert time.monotonic() - started < 2.5
            with anyio.fail_after(2):
                while slow.engine.load().running:  # noqa: ASYNC110 - the server runs on another thread
                    await anyio.sleep(0.01)


async def test_an_answer_that_never_comes_is_asked_of_another_before_its_server_counts_as_stalled(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    hung = {"faults": {f"data:{n}": "hang" for n in range(1, 21)}}
    with serving(scripted(FAST)) as a, serving(scripted(hung)) as b:
        async with line_to(a) as (to_a, line_a), line_to(b) as (to_b, line_b):
            pool = RolloutPool([to_a, to_b], sampling, windows=[6, 6])
            started = time.monotonic()
            assert_each_once(await all_of(pool, requests_of(20)), 20)
            assert time.monotonic() - started < 3
    asked = [name for line in (line_a, line_b) for post in line.posts for name in post]
    assert len(asked) == 20 + len(line_b.posts[0])  # once more what the other one had, and that once


async def test_fixed_batches_are_not_asked_for_twice(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    with serving(scripted(FAST)) as a, serving(scripted({"seconds_per_token": 0.2})) as b:
        async with line_to(a) as (to_a, line_a), line_to(b) as (to_b, line_b):
            pool = RolloutPool([to_a, to_b], sampling, samples_per_request=4, windows=[4, 4], fixed_batches=True)
            assert_each_once(await all_of(pool, requests_of(20)), 20)
    assert len(line_a.posts) + len(line_b.posts) == 5


async def test_a_batch_with_a_failed_answer_is_decoded_again_whole(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    with serving(scripted({"faults": {"data:2": "error"}})) as running:
        async with line_to(running) as (server, line):
            pool = RolloutPool([server], sampling, samples_per_request=2, windows=[2], fixed_batches=True)
            results = await all_of(pool, requests_of(4))
    assert line.posts == [["1", "2"], ["3", "4"], ["1", "2"]]
    assert sorted(result.request.uid for result in results) == [f"data:{n}" for n in range(1, 5)]


async def test_a_request_survives_two_engines_that_die(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    dying = {"faults": {"data:1": "die"}}
    with serving(scripted(dying)) as a, serving(scripted(dying)) as b, serving(scripted({"start_s": 0})) as c:
        async with line_to(a) as (to_a, line_a), line_to(b) as (to_b, line_b), line_to(c) as (to_c, line_c):
            line_c.pulled = True
            pool = RolloutPool([to_a, to_b, to_c], sampling, patience_s=10)
            async with anyio.create_task_group() as tasks:

                async def repair() -> None:
                    with anyio.fail_after(5):
                        while not (["1"] in line_a.posts and ["1"] in line_b.posts):  # noqa: ASYNC110
                            await anyio.sleep(0.01)
                    line_c.pulled = False

                tasks.start_soon(repair)
                assert_each_once(await all_of(pool, requests_of(1)), 1)


async def test_a_server_that_only_refuses_is_told_once_and_ends_patience(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling, caplog: pytest.LogCaptureFixture
) -> None:
    few = limits_for(256, 4).model_copy(update={"max_open_samples": 2})
    hung = {"faults": {f"data:{n}": "hang" for n in range(1, 3)}}
    with serving(scripted(hung, limits=few)) as running:
        async with running.client() as client, anyio.create_task_group() as tasks:
            server = RolloutServer(client, 20.0)
            tasks.start_soon(all_of, RolloutPool([server], sampling), requests_of(2))
            with anyio.fail_after(5):
                while running.engine.load().running < 2:  # noqa: ASYNC110 - the server runs on another thread
                    await anyio.sleep(0.01)
            started = time.monotonic()
            with caplog.at_level(logging.WARNING), pytest.raises(ServerUnavailable, match=r"(?s)within 2\.5 s.*429"):
                await all_of(RolloutPool([server], sampling, patience_s=2.5), requests_of(1))
            assert 2.5 <= time.monotonic() - started < 5
            tasks.cancel_scope.cancel()
    assert caplog.text.count("what it refuses waits") == 1


async def test_patience_ends_while_a_probe_is_open(frozen: str, requests_of: RequestsOf, sampling: Sampling) -> None:
    async with httpx.AsyncClient(base_url=frozen) as client:
        server = RolloutServer(client, 20.0)
        pool = RolloutPool([server], sampling, patience_s=0.5)
        pool.leave_out([server.name])
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match="no rollout server is left"):
            await all_of(pool, requests_of(1))
        assert time.monotonic() - started < 3


async def test_a_server_that_was_left_out_is_asked_nothing_until_it_is_back(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    with serving(scripted({"seconds_per_token": 0.02})) as a, serving(scripted()) as b:
        async with line_to(a) as (to_a, line_a), line_to(b) as (to_b, line_b):
            pool = RolloutPool([to_a, to_b], sampling, windows=[2, 2], patience_s=5)
            pool.leave_out([to_b.name])
            assert_each_once(await all_of(pool, requests_of(20)), 20)
    assert line_b.posts  # what waited went to it
    assert line_a.posts


async def test_a_slow_reader_holds_up_new_requests_and_not_what_is_decoded(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.decoding.scheduler.MOST_UNREAD", 4)
    monkeypatch.setattr("learner.decoding.scheduler.MOST_AHEAD", 4)
    taken = 0

    async def asked() -> AsyncIterator[RolloutRequest]:
        nonlocal taken
        for request in requests_of(40):
            taken += 1
            yield request

    names = []
    with serving(scripted()) as running:
        async with running.client() as client:
            pool = RolloutPool([RolloutServer(client, 5.0)], sampling, windows=[4])
            with anyio.fail_after(20):
                async with aclosing(pool.decode(asked(), None)) as results:
                    async for result in results:
                        names.append(result.request.uid)
                        if len(names) == 8:
                            await anyio.sleep(0.5)
                            assert taken <= 8 + 3 * 4
                            assert running.engine.load().running == 0
    assert sorted(names) == sorted(f"data:{n}" for n in range(1, 41))

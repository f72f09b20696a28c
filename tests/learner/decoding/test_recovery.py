"""Servers that fail and come back, before a run's first word with them and while a pool decodes."""

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx
import pytest

from learner.decoding.pool import RolloutPool
from learner.decoding.work_queue import MAX_FAILURES
from learner.plan.time_split import ServerActivity
from learner.servers.rollouts import RolloutServer, introduce
from learner.types import Answer, LostSample, Rollout, RolloutRequest
from rollout_server.settings import limits_for
from shared.errors import ServerNeverReady, ServerUnavailable, WeightSyncFailed
from shared.weight_wire import WeightCommit, WeightManifest
from shared.wire import PolicyVersion, RolloutBatch, Sampling

RequestsOf = Callable[[int], list[RolloutRequest]]
pytestmark = pytest.mark.slow

VERSION = PolicyVersion(incarnation="ab", step=3)


@dataclass
class Switched(httpx.AsyncBaseTransport):
    """A line to a server that can be pulled; `posts` are the batches that went over it."""

    real: httpx.AsyncHTTPTransport = field(default_factory=httpx.AsyncHTTPTransport)
    pulled: bool = False
    posts: list[list[str]] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.pulled:
            raise httpx.ConnectError("the line is pulled, says the test")
        if request.url.path == "/rollouts":
            batch = RolloutBatch.model_validate_json(await request.aread())
            self.posts.append([sample.uid.removeprefix("data:") for sample in batch.samples])
        return await self.real.handle_async_request(request)


@asynccontextmanager
async def line_to(running: object) -> AsyncIterator[tuple[RolloutServer, Switched]]:
    line = Switched()
    async with httpx.AsyncClient(base_url=running.url, transport=line) as client:  # type: ignore[attr-defined]
        yield RolloutServer(client, 5.0), line


async def all_of(
    pool: RolloutPool, requests: list[RolloutRequest], version: PolicyVersion | None = None
) -> list[Answer]:
    with anyio.fail_after(20):
        async with aclosing(pool.decode(requests, version)) as results:
            return [result async for result in results]


def assert_each_once(results: list[Answer], number: int) -> None:
    assert Counter(result.request.uid for result in results) == Counter(f"data:{n}" for n in range(1, number + 1))
    assert all(isinstance(result, Rollout) for result in results)


async def test_a_starting_run_waits_for_a_server_that_cannot_be_reached_yet(serving, scripted, caplog) -> None:
    with serving(scripted()) as running:
        async with line_to(running) as (server, line):
            line.pulled = True
            async with anyio.create_task_group() as tasks:

                async def repair() -> None:
                    await anyio.sleep(0.3)
                    line.pulled = False

                tasks.start_soon(repair)
                with anyio.fail_after(10), caplog.at_level(logging.WARNING):
                    (info,) = await introduce([server], patience_s=5)
    assert info.engine == "scripted"
    assert caplog.text.count("asking it again") == 1


async def test_a_run_without_its_server_does_not_start(serving, scripted) -> None:
    with serving(scripted()) as running:
        async with line_to(running) as (server, line):
            line.pulled = True
            with anyio.fail_after(10), pytest.raises(ServerNeverReady, match=r"(?s)pulled.*0\.6 s \(vllm\.server"):
                await introduce([server], patience_s=0.6)


async def test_what_a_dead_server_had_goes_to_the_other_while_that_still_decodes(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    slow = {"delays": {"data:2": 1.5}}
    with serving(scripted({"faults": {"data:1": "die"}})) as a, serving(scripted(slow)) as b:
        async with a.client() as to_a, b.client() as to_b:
            pool = RolloutPool([RolloutServer(to_a, 5.0), RolloutServer(to_b, 5.0)], sampling)
            arrived = [result.request.uid for result in await all_of(pool, requests_of(4))]
    assert arrived[-1] == "data:2"  # the round of the other one had not ended
    assert sorted(arrived) == [f"data:{n}" for n in range(1, 5)]


async def test_the_only_server_is_waited_for_and_joins_the_running_call(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling, caplog
) -> None:
    with serving(scripted()) as running:
        async with line_to(running) as (server, line):
            pool = RolloutPool([server], sampling, patience_s=10)
            line.pulled = True
            async with anyio.create_task_group() as tasks:

                async def repair() -> None:
                    await anyio.sleep(0.5)
                    line.pulled = False

                tasks.start_soon(repair)
                with caplog.at_level(logging.WARNING):
                    assert_each_once(await all_of(pool, requests_of(3)), 3)
    assert "the line is pulled" in caplog.text
    assert "3 samples of it wait" in caplog.text
    assert f"{running.url} is back" in caplog.text


async def test_patience_ends_with_the_last_failure(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    with serving(scripted()) as running:
        async with line_to(running) as (server, line):
            line.pulled = True
            started = time.monotonic()
            with pytest.raises(ServerUnavailable, match=r"(?s)3 samples.*0\.5 s \(vllm\.server\.timeout_s\).*pulled"):
                await all_of(RolloutPool([server], sampling, patience_s=0.5), requests_of(3))
            assert 0.5 <= time.monotonic() - started < 5


async def test_a_server_with_other_weights_is_sent_the_current_ones(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling, publish_by_hand, tmp_path: Path
) -> None:
    asked: list[str] = []

    async def restore(name: str) -> PolicyVersion:
        asked.append(name)
        if len(asked) == 1:
            raise WeightSyncFailed("not yet, says the test")
        await publish_by_hand(clients[name], VERSION)
        return VERSION

    settings = scripted({"seconds_per_token": 0.005}, weights_root=tmp_path)  # there is work left when it is back
    with serving(settings) as a, serving(settings) as b:
        async with a.client() as to_a, b.client() as to_b:
            clients = {str(client.base_url): client for client in (to_a, to_b)}
            await publish_by_hand(to_a, VERSION)
            servers = [RolloutServer(client, 5.0) for client in clients.values()]
            pool = RolloutPool(servers, sampling, samples_per_request=1, windows=[1, 1], restore=restore)
            results = await all_of(pool, requests_of(40), VERSION)
            assert_each_once(results, 40)
            brought_up, undisturbed = (server.account.seconds() for server in reversed(servers))
            assert brought_up[ServerActivity.SYNCING] > 0 == undisturbed[ServerActivity.SYNCING]
            assert {result.policy_version for result in results if isinstance(result, Rollout)} == {VERSION}
            alone = RolloutPool(servers[1:], sampling, restore=restore, patience_s=10)
            assert_each_once(await all_of(alone, requests_of(2), VERSION), 2)
            assert asked == [str(to_b.base_url)] * 2


async def test_a_full_server_is_asked_again_when_it_says(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    few = limits_for(256, 16).model_copy(update={"max_open_samples": 4})
    with serving(scripted({"delays": {f"data:{n}": 0.3 for n in range(1, 5)}}, limits=few)) as running:
        async with line_to(running) as (server, line):
            pool = RolloutPool([server], sampling, samples_per_request=2, patience_s=5)
            started = time.monotonic()
            assert_each_once(await all_of(pool, requests_of(6)), 6)
    assert time.monotonic() - started >= 1  # Retry-After
    assert len(line.posts) == 4  # one of the first three was refused


async def test_fixed_batches_are_the_same_however_many_servers_take_them(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    fixed = {"samples_per_request": 2, "windows": [2, 2], "fixed_batches": True}
    slow = {"delays": {"data:2": 30}}
    with serving(scripted(slow, max_stream_s=0.5)) as a, serving(scripted()) as b:
        async with line_to(a) as (to_a, line_a), line_to(b) as (to_b, line_b):
            results = await all_of(RolloutPool([to_a, to_b], sampling, **fixed), requests_of(5))
    assert_each_once(results, 5)
    assert ["1", "2"] in line_a.posts
    assert ["1", "2"] in line_b.posts  # whole, though the first of the two had its answer
    assert {tuple(post) for post in line_a.posts + line_b.posts} == {("1", "2"), ("3", "4"), ("5",)}


async def test_a_sample_that_fails_every_server_is_lost_alone(
    serving, scripted, requests_of: RequestsOf, sampling: Sampling
) -> None:
    with serving(scripted({"faults": {"data:2": "hang"}})) as running:
        async with running.client() as client:
            pool = RolloutPool([RolloutServer(client, 0.1)], sampling, patience_s=5)
            results = {result.request.uid: result for result in await all_of(pool, requests_of(3))}
    lost = results.pop("data:2")
    assert isinstance(lost, LostSample)
    assert lost.message.startswith(f"{MAX_FAILURES} servers failed")
    assert all(isinstance(result, Rollout) for result in results.values())


@pytest.fixture
def publish_by_hand(checkpoint, tmp_path):
    """Bring a server to a version: `await publish_by_hand(client, version)`."""
    from safetensors.torch import load_file

    from learner.weight_sync.file import FileOutlet

    async def publish(client: httpx.AsyncClient, version: PolicyVersion) -> None:
        update = FileOutlet().offer(tmp_path, load_file(checkpoint / "model.safetensors"), version, "full")
        manifest: WeightManifest = update.manifest
        for path, body in (("prepare", manifest), ("commit", WeightCommit(policy_version=version))):
            reply = await client.post(f"/weights/{path}", content=body.model_dump_json())
            assert reply.is_success, reply.text

    return publish

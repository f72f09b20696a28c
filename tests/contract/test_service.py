"""What a server process of each engine says in /metrics, and that an answer nobody waits for is decoded no further."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from learner.servers.rollouts import RolloutServer
from learner.types import LostSample

pytestmark = pytest.mark.slow

OURS, VLLMS = "boxloop_server_generated_tokens_total", "vllm:generation_tokens_total"


async def metric(site, name: str) -> float:
    """The sum over its labels, 0 when it is not there."""
    lines = (await site.client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))


@asynccontextmanager
async def long_batch(site) -> AsyncIterator[list]:
    """Answers that are being decoded and will be for a second, in a stream that goes with the block."""
    sampling = site.sampling.model_copy(update={"max_new_tokens": 500, "stop_token_ids": ()})
    before, got = await metric(site, OURS), []

    async def read() -> None:
        async for result in RolloutServer(site.client, 60).decode("long", site.requests, sampling, None):
            got.append(result)  # noqa: PERF401 - what has come so far is looked at

    reading = asyncio.create_task(read())
    async with asyncio.timeout(30):
        while await metric(site, OURS) == before:
            assert not reading.done()
    yield got
    reading.cancel()
    await asyncio.wait([reading])


async def assert_nothing_is_decoded(site) -> None:
    async with asyncio.timeout(5):
        while await metric(site, "boxloop_server_open_samples") or await metric(site, "boxloop_server_running"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    stopped = await metric(site, OURS)
    await asyncio.sleep(0.3)
    assert await metric(site, OURS) == stopped


async def test_a_deleted_batch_is_decoded_no_further(site) -> None:
    async with long_batch(site) as got:
        reply = (await site.client.delete("/rollouts/long")).json()
        assert reply["cancelled"] > 0
        await assert_nothing_is_decoded(site)
        assert sum(isinstance(each, LostSample) for each in got) == reply["cancelled"]


async def test_a_batch_whose_client_has_gone_is_decoded_no_further(site) -> None:
    async with long_batch(site) as got:
        pass
    await assert_nothing_is_decoded(site)
    assert len(got) < len(site.requests)


async def test_one_scrape_has_the_servers_tokens_and_those_of_its_engine(site, served) -> None:
    await site.answers(None, 2)
    names = [OURS, VLLMS] if served.engine == "vllm" else [OURS]
    scrape = (await site.client.get("/metrics")).text
    for name in names:
        assert [line for line in scrape.splitlines() if line.startswith(name) and float(line.split()[-1]) > 0], name

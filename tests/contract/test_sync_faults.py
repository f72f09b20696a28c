"""Whatever goes wrong in a sync, answers are those of the old or of the new weights, or the server is not ready."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from safetensors import safe_open

from learner.model.load import LoadedModel
from learner.rollouts.remote import RolloutServer
from learner.weight_sync.merge import full_weights
from learner.weight_sync.transports import WeightUpdate, write_update
from rollout_server.engines.hf import HfEngine
from shared.errors import ServerUnavailable, WeightSyncFailed
from shared.wire import PolicyVersion, WeightCommit

pytestmark = pytest.mark.slow

COUNT = 4
"""Requests that tell old weights from new ones."""
NEW = PolicyVersion(incarnation="new", step=1)

Fault = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
def old(load: Callable[..., LoadedModel]) -> LoadedModel:
    return shaken(load(), 1)


@pytest.fixture(scope="module")
def new(load: Callable[..., LoadedModel]) -> LoadedModel:
    return shaken(load(), 2)


def shaken(loaded: LoadedModel, seed: int) -> LoadedModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return loaded


# --- data that is not what was announced, or never comes: the old version serves on -----------------------------------


async def announces_what_does_not_fit(site, update: WeightUpdate) -> None:
    first, *rest = update.manifest.tensors
    smaller = first.model_copy(update={"shape": (1,), "num_bytes": 4})
    with pytest.raises(WeightSyncFailed, match="has shape"):
        await site.channel.prepare(update.manifest.model_copy(update={"tensors": (smaller, *rest)}))


async def removes_the_file(site, update: WeightUpdate) -> None:
    update.file.unlink()
    await refused(site, update, "does not exist")


async def cuts_the_file(site, update: WeightUpdate) -> None:
    with update.file.open("r+b") as file:
        file.truncate(update.manifest.num_bytes - 1)
    await refused(site, update, "bytes, announced are")


async def damages_the_file(site, update: WeightUpdate) -> None:
    with update.file.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\x7f" * 4)
    await refused(site, update, "has digest")


async def refused(site, update: WeightUpdate, reason: str) -> None:
    await site.channel.prepare(update.manifest)
    with pytest.raises(WeightSyncFailed, match=reason):
        await site.channel.commit(WeightCommit(policy_version=NEW))


async def dies_before_the_commit(site, update: WeightUpdate) -> None:
    await site.channel.prepare(update.manifest)


async def dies_between_two_chunks(site, update: WeightUpdate) -> None:
    await site.channel.prepare(by_http(update))
    await site.client.put("/weights/chunk?offset=0", content=update.file.read_bytes()[:1_000_000])
    assert (await site.channel.status()).received_bytes == 1_000_000


async def commits_half_of_the_chunks(site, update: WeightUpdate) -> None:
    await dies_between_two_chunks(site, update)
    with pytest.raises(WeightSyncFailed, match="bytes, announced are"):
        await site.channel.commit(WeightCommit(policy_version=NEW))


async def is_cut_in_a_chunk(site, update: WeightUpdate) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield update.file.read_bytes()[:100_000]
        raise ConnectionResetError

    await site.channel.prepare(by_http(update))
    with pytest.raises(ConnectionResetError):
        await site.client.put("/weights/chunk?offset=0", content=cut())
    assert (await site.channel.status()).received_bytes == 0


def by_http(update: WeightUpdate):
    return update.manifest.model_copy(update={"transport": "http", "folder": None})


@pytest.mark.parametrize(
    "fault",
    [
        announces_what_does_not_fit,
        removes_the_file,
        cuts_the_file,
        damages_the_file,
        dies_before_the_commit,
        dies_between_two_chunks,
        commits_half_of_the_chunks,
        is_cut_in_a_chunk,
    ],
    ids=lambda fault: fault.__name__,
)
async def test_a_learner_that_does_not_deliver_leaves_the_old_weights_serving(
    site, old: LoadedModel, new: LoadedModel, fault: Fault
) -> None:
    with site.publisher(old) as publisher, site.publisher(new) as successor:
        version = (await publisher.publish_if_stale(1)).version
        before = await site.answers(version, COUNT)
        update = write_update(site.root, full_weights(new), NEW, "full", "file")
        await fault(site, update)
        assert await site.answers(version, COUNT) == before
        assert await site.status_of("/ready/") == 200
        assert await site.answers((await successor.publish_if_stale(1)).version, COUNT) != before
    update.drop()
    assert not any(site.root.iterdir())


# --- a load that fails half-way: nothing is served until everything has been sent again -------------------------------


async def assert_serves_nothing(site, version: PolicyVersion) -> None:
    assert [await site.status_of(path) for path in ("/health/", "/ready/")] == [200, 503]
    for wanted in (None, version):
        with pytest.raises(ServerUnavailable, match="weights_tainted"):
            await site.answers(wanted, COUNT)


async def test_weights_that_are_not_finite_serve_nothing_until_a_full_resend(site, old: LoadedModel, load) -> None:
    broken = load(freeze_vit=True)
    with site.publisher(old) as publisher, site.publisher(broken, merges=True) as breaking:
        version = (await publisher.publish_if_stale(1)).version
        before = await site.answers(version, COUNT)
        await breaking.publish_if_stale(1)
        with torch.no_grad():
            broken.model.model.language_model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
        with pytest.raises(WeightSyncFailed, match="canary"):  # the merged update, then the full one
            await breaking.publish_if_stale(2)
        await assert_serves_nothing(site, version)
        assert await publisher.resend(site.channel.name) == version
        assert await site.status_of("/ready/") == 200
        assert await site.answers(version, COUNT) == before


class HalfLoadingEngine(HfEngine):
    """Loads half of the tensors and then fails, while `breaks` is set."""

    breaks = False

    async def load_weights(self, file: Path) -> None:
        if not self.breaks:
            return await super().load_weights(file)
        held = self._loaded().model.state_dict()
        with safe_open(file, framework="pt") as sent:
            names = sorted(sent.keys())
            for name in names[: len(names) // 2]:
                held[name].copy_(sent.get_tensor(name))
        raise WeightSyncFailed("half of it was loaded, says the test")


@pytest.fixture
async def breakable(serving, scripted, site_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator:
    monkeypatch.setattr("rollout_server.engines.hf.HfEngine", HalfLoadingEngine)
    with serving(replace(scripted(), engine="hf", weights_root=tmp_path)) as running:
        yield running.engine, await site_of(running.url, tmp_path)


async def test_half_of_a_load_serves_nothing_until_a_full_resend(breakable, old: LoadedModel, new: LoadedModel) -> None:
    engine, site = breakable
    with site.publisher(old, "http") as publisher, site.publisher(new, "http") as successor:
        version = (await publisher.publish_if_stale(1)).version
        before = await site.answers(version, COUNT)
        engine.breaks = True
        with pytest.raises(WeightSyncFailed, match="says the test"):
            await successor.publish_if_stale(1)
        await assert_serves_nothing(site, version)
        engine.breaks = False
        await publisher.resend(site.channel.name)
        assert await site.answers(version, COUNT) == before
        published = await successor.publish_if_stale(1)
        assert await site.answers(published.version, COUNT) != before


# --- a server that is killed while it commits ------------------------------------------------------------------------


@asynccontextmanager
async def open_batch(site) -> AsyncIterator[None]:
    """A long answer that is being decoded, until the server dies."""
    sampling = site.sampling.model_copy(update={"max_new_tokens": 450, "stop_token_ids": ()})
    stream = RolloutServer(site.client, 60).decode("long", site.requests[:1], sampling, None)
    answer = asyncio.create_task(anext(stream))
    while "boxloop_server_running 1" not in (await site.client.get("/metrics")).text:  # noqa: ASYNC110 - a process
        await asyncio.sleep(0.01)
    yield
    with pytest.raises(ServerUnavailable):
        await answer


async def test_a_server_killed_in_a_commit_comes_back_with_its_checkpoint_and_is_sent_everything(
    mortal, site_of, old: LoadedModel
) -> None:
    site = await site_of(mortal.url, mortal.weights_root)
    before = await site.answers(None, COUNT)
    with site.publisher(old) as publisher:
        async with open_batch(site):  # holds the commit at the door
            publishing = asyncio.create_task(publisher.publish_if_stale(1))
            while (await site.channel.status()).phase != "loading":  # noqa: ASYNC110 - a process
                await asyncio.sleep(0.01)
            mortal.end(signal.SIGKILL)
        assert (await publishing).left_out == (site.channel.name,)
        mortal.start()
        site.client.base_url = httpx.URL(mortal.url)
        assert (await site.channel.status()).policy_version is None
        assert await site.answers(None, COUNT) == before
        version = await publisher.resend(site.channel.name)
        assert await site.answers(version, COUNT) != before

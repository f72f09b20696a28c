"""Whatever goes wrong in a sync, answers are those of the old or of the new weights, or the server is not ready."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from learner.model.loaded import LoadedModel
from learner.servers.rollouts import RolloutServer
from learner.weight_sync.file import FileOffer, FileOutlet
from learner.weight_sync.snapshot import full_weights
from rollout_server.engines.base import WeightSource
from rollout_server.engines.hf.engine import HfEngine
from rollout_server.engines.vllm.engine import VllmEngine
from rollout_server.settings import ServerSettings, limits_for
from shared.errors import ServerUnavailable, WeightSyncFailed
from shared.weight_wire import WeightCommit
from shared.wire import PolicyVersion
from tests.contract.own_answers import Learner, assert_same

pytestmark = pytest.mark.slow

COUNT = 4
"""Requests that tell old weights from new ones."""
NEW = PolicyVersion(incarnation="new", step=1)

Fault = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
def shaken_learner(load: Callable[..., LoadedModel], requests, sampling) -> Callable[..., Learner]:
    return lambda seed, **tuner: Learner(shaken(load(**tuner), seed), requests[:COUNT], sampling)


@pytest.fixture(scope="module")
def old(shaken_learner: Callable[..., Learner]) -> Learner:
    return shaken_learner(1)


@pytest.fixture(scope="module")
def new(shaken_learner: Callable[..., Learner]) -> Learner:
    return shaken_learner(2)


def shaken(loaded: LoadedModel, seed: int) -> LoadedModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return loaded


# --- data that is not what was announced, or never comes: the old version serves on -----------------------------------


async def announces_what_does_not_fit(site, update: FileOffer) -> None:
    first, *rest = update.manifest.tensors
    smaller = first.model_copy(update={"shape": (1,), "num_bytes": 4})
    with pytest.raises(WeightSyncFailed, match="has shape"):
        await site.channel.prepare(update.manifest.model_copy(update={"tensors": (smaller, *rest)}))


async def removes_the_file(site, update: FileOffer) -> None:
    update.written.file.unlink()
    await refused(site, update, "does not exist")


async def cuts_the_file(site, update: FileOffer) -> None:
    with update.written.file.open("r+b") as file:
        file.truncate(update.manifest.num_bytes - 1)
    await refused(site, update, "bytes, announced are")


async def damages_the_file(site, update: FileOffer) -> None:
    with update.written.file.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\x7f" * 4)
    await refused(site, update, "has digest")


async def refused(site, update: FileOffer, reason: str) -> None:
    await site.channel.prepare(update.manifest)
    with pytest.raises(WeightSyncFailed, match=reason):
        await site.channel.commit(WeightCommit(policy_version=NEW))


async def dies_before_the_commit(site, update: FileOffer) -> None:
    await site.channel.prepare(update.manifest)


async def dies_between_two_chunks(site, update: FileOffer) -> None:
    await site.channel.prepare(by_http(update))
    await site.client.put("/weights/chunk?offset=0", content=update.written.file.read_bytes()[:1_000_000])
    assert (await site.channel.status()).received_bytes == 1_000_000


async def commits_half_of_the_chunks(site, update: FileOffer) -> None:
    await dies_between_two_chunks(site, update)
    with pytest.raises(WeightSyncFailed, match="bytes, announced are"):
        await site.channel.commit(WeightCommit(policy_version=NEW))


async def is_cut_in_a_chunk(site, update: FileOffer) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield update.written.file.read_bytes()[:100_000]
        raise ConnectionResetError

    await site.channel.prepare(by_http(update))
    with pytest.raises(ConnectionResetError):
        await site.client.put("/weights/chunk?offset=0", content=cut())
    assert (await site.channel.status()).received_bytes == 0


def by_http(update: FileOffer):
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
    site, old: Learner, new: Learner, fault: Fault
) -> None:
    with site.publisher(old.loaded) as publisher, site.publisher(new.loaded) as successor:
        version = (await publisher.publish_if_stale(1)).version
        update = FileOutlet().offer(site.root, full_weights(new.loaded), NEW, "full")
        await fault(site, update)
        assert_same(await site.answers(version, COUNT), old)
        assert await site.status_of("/ready/") == 200
        assert_same(await site.answers((await successor.publish_if_stale(1)).version, COUNT), new)
    update.drop()
    assert not any(site.root.iterdir())


# --- a load that fails half-way: nothing is served until everything has been sent again -------------------------------


async def assert_serves_nothing(site, version: PolicyVersion) -> None:
    assert [await site.status_of(path) for path in ("/health/", "/ready/")] == [200, 503]
    for wanted in (None, version):
        with pytest.raises(ServerUnavailable, match="weights_tainted"):
            await site.answers(wanted, COUNT)


async def test_weights_that_are_not_finite_serve_nothing_until_a_full_resend(site, old: Learner, load) -> None:
    broken = load(freeze_vit=True)
    with site.publisher(old.loaded) as publisher, site.publisher(broken, merges=True) as breaking:
        version = (await publisher.publish_if_stale(1)).version
        await breaking.publish_if_stale(1)
        with torch.no_grad():
            broken.model.model.language_model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
        with pytest.raises(WeightSyncFailed, match="canary"):  # the merged update, then the full one
            await breaking.publish_if_stale(2)
        await assert_serves_nothing(site, version)
        assert await publisher.resend(site.channel.name) == version
        assert await site.status_of("/ready/") == 200
        assert_same(await site.answers(version, COUNT), old)


class HalfLoadingHf(HfEngine):
    """Loads half of the tensors and then fails, while `breaks` is set."""

    breaks = False

    async def load_weights(self, source: WeightSource) -> None:
        if not self.breaks:
            return await super().load_weights(source)
        held = self._loaded().model.state_dict()
        with safe_open(source.path, framework="pt") as sent:
            names = sorted(sent.keys())
            for name in names[: len(names) // 2]:
                held[name].copy_(sent.get_tensor(name))
        raise WeightSyncFailed("half of it was loaded, says the test")


class HalfLoadingVllm(VllmEngine):
    """Stumbles over a tensor after all others have been loaded, while `breaks` is set."""

    breaks = False

    async def load_weights(self, source: WeightSource) -> None:
        if self.breaks:
            with safe_open(source.path, framework="pt") as sent:
                tensors = {name: sent.get_tensor(name) for name in sent.keys()}  # noqa: SIM118 - no mapping
            last = list(tensors)[-1]
            save_file(tensors | {last: tensors[last][..., :-1].contiguous()}, source.path)
        await super().load_weights(source)


HALF_LOADING = {"hf": HalfLoadingHf, "vllm": HalfLoadingVllm}
NO_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="module", params=["hf", pytest.param("vllm", marks=NO_VLLM)])
def half_loading(
    request: pytest.FixtureRequest, serving, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator:
    """A server whose engine may be told to break, and where it takes files."""
    engine, root = HALF_LOADING[request.param], tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{engine.__base__.__module__}.{engine.__base__.__name__}", engine)
        with serving(ServerSettings(str(checkpoint), request.param, limits_for(256, 4), weights_root=root)) as running:
            yield running, root


@pytest.fixture
async def breakable(half_loading, site_of) -> AsyncIterator:
    running, root = half_loading
    yield running.engine, await site_of(running.url, root)
    running.engine.breaks = False


async def test_half_of_a_load_serves_nothing_until_a_full_resend(breakable, old: Learner, new: Learner) -> None:
    engine, site = breakable
    with site.publisher(old.loaded, "http") as publisher, site.publisher(new.loaded, "http") as successor:
        version = (await publisher.publish_if_stale(1)).version
        engine.breaks = True
        with pytest.raises(WeightSyncFailed, match="load_failed"):
            await successor.publish_if_stale(1)
        await assert_serves_nothing(site, version)
        engine.breaks = False
        await publisher.resend(site.channel.name)
        assert_same(await site.answers(version, COUNT), old)
        published = await successor.publish_if_stale(1)
        assert_same(await site.answers(published.version, COUNT), new)


async def test_half_of_a_merged_load_serves_nothing_until_everything_is_sent(
    breakable, shaken_learner: Callable[..., Learner]
) -> None:
    engine, site = breakable
    learner = shaken_learner(3, train_type="lora", lora_rank=4)
    with site.publisher(learner.loaded, "http", merges=True, fallback_to_full=False) as publisher:
        version = (await publisher.publish_if_stale(1)).version
        assert_same(await site.answers(version, COUNT), learner)
        learner.train_to(2)
        engine.breaks = True
        with pytest.raises(WeightSyncFailed, match="load_failed"):
            await publisher.publish_if_stale(2)
        await assert_serves_nothing(site, version)
        engine.breaks = False
        published = await publisher.publish_if_stale(2)
        assert_same(await site.answers(published.version, COUNT), learner)


# --- a server that is killed while it commits ------------------------------------------------------------------------


@asynccontextmanager
async def open_batch(site) -> AsyncIterator[None]:
    """A long answer that is being decoded, until the server dies."""
    sampling = site.sampling.model_copy(update={"max_new_tokens": 450, "stop_token_ids": ()})
    stream = RolloutServer(site.client, 60).decode("long", site.requests[:1], sampling, None)
    answer = asyncio.create_task(anext(stream))
    await until(lambda: is_decoding(site))
    yield
    with pytest.raises(ServerUnavailable):
        await answer


@pytest.mark.parametrize("mortal", ["hf"], indirect=True)
async def test_a_server_killed_in_a_commit_comes_back_with_its_checkpoint_and_is_sent_everything(
    mortal, site_of, old: Learner
) -> None:
    site = await site_of(mortal.url, mortal.weights_root)
    before = await site.answers(None, COUNT)
    with site.publisher(old.loaded) as publisher:
        async with open_batch(site):  # holds the commit at the door
            publishing = asyncio.create_task(publisher.publish_if_stale(1))
            await until(lambda: is_loading(site))
            mortal.end(signal.SIGKILL)
        assert (await publishing).left_out == (site.channel.name,)
        await comes_back(mortal, site, before)
        version = await publisher.resend(site.channel.name)
        assert_same(await site.answers(version, COUNT), old)


@pytest.mark.parametrize("mortal", ["vllm"], indirect=True)
async def test_an_engine_core_killed_in_a_load_takes_the_server_with_it_which_is_then_sent_everything(
    mortal, site_of, old: Learner
) -> None:
    site = await site_of(mortal.url, mortal.weights_root)
    before = await site.answers(None, COUNT)
    (core,) = psutil.Process(mortal.process.pid).children()
    with site.publisher(old.loaded) as publisher:
        core.suspend()  # so that the load does not end
        publishing = asyncio.create_task(publisher.publish_if_stale(1))
        await until(lambda: is_syncing(site))
        core.kill()
        assert (await publishing).left_out == (site.channel.name,)
        assert mortal.process.wait(10) == 1
        await comes_back(mortal, site, before)
        version = await publisher.resend(site.channel.name)
        assert_same(await site.answers(version, COUNT), old)


async def until(happened: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await happened():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)


async def is_decoding(site) -> bool:
    return "boxloop_server_running 1" in (await site.client.get("/metrics")).text


async def is_loading(site) -> bool:
    return (await site.channel.status()).phase == "loading"


async def is_syncing(site) -> bool:
    """Whether the door is shut and the load has begun."""
    metrics = (await site.client.get("/metrics")).text
    return not re.search(r'boxloop_server_seconds_total{activity="syncing"} 0\.0$', metrics, re.MULTILINE)


async def comes_back(mortal, site, checkpoint_answers: list[tuple[int, ...]]) -> None:
    mortal.start()
    site.client.base_url = httpx.URL(mortal.url)
    assert (await site.channel.status()).policy_version is None
    assert await site.answers(None, COUNT) == checkpoint_answers

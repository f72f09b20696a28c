"""The learner's weights reach real servers whole, or not at all."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import pytest
import torch

from learner.compute import ComputeLane
from learner.model.load import LoadedModel, load_model
from learner.model.tiny import build_tiny
from learner.rollouts.balance import RolloutPool
from learner.rollouts.remote import Rollout, RolloutRequest, RolloutServer
from learner.weight_sync.client import WeightChannel
from learner.weight_sync.merge import full_weights
from learner.weight_sync.publisher import Published, WeightPublisher
from learner.weight_sync.transports import FileTransport
from shared.errors import WeightSyncFailed
from shared.wire import PolicyVersion, Sampling

TIMEOUT_S = 20.0


@pytest.fixture
def trained(checkpoint: Path) -> LoadedModel:
    """The served checkpoint after some training, as far as a server can tell."""
    loaded = load_model(str(checkpoint), dtype="float32", device="cpu")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return loaded


@pytest.fixture
def sampling(trained: LoadedModel) -> Sampling:
    config = trained.model.config
    banned = (config.image_token_id, config.video_token_id)
    return Sampling(max_new_tokens=24, stop_token_ids=(7,), banned_token_ids=banned)


class Site:
    """Running servers, and a publisher to them."""

    def __init__(self, clients: list, root: Path, loaded: LoadedModel, lane: ComputeLane) -> None:
        self.root = root
        self.servers = [RolloutServer(client, TIMEOUT_S) for client in clients]
        self.channels = [WeightChannel(client, TIMEOUT_S) for client in clients]
        self.publisher = WeightPublisher(self.channels, FileTransport(root), partial(full_weights, loaded), lane)

    async def answers(
        self, server: RolloutServer, requests: list[RolloutRequest], sampling: Sampling, version: PolicyVersion | None
    ) -> dict[str, tuple[int, ...]]:
        async with aclosing(RolloutPool([server], sampling).decode(requests, version)) as results:
            return {result.request.uid: result.token_ids async for result in results if isinstance(result, Rollout)}

    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())


@pytest.fixture
async def site_of(serving, scripted, trained: LoadedModel, tmp_path: Path) -> AsyncIterator[Callable]:
    """Start servers with these options and connect a publisher to them."""
    root = tmp_path / "weights"
    root.mkdir()
    async with AsyncExitStack() as stack:

        async def start(*options: dict) -> Site:
            lane = stack.enter_context(ComputeLane())
            running = [
                stack.enter_context(serving(scripted({}, **{"engine": "hf", "weights_root": root, **each})))
                for each in options
            ]
            clients = [await stack.enter_async_context(each.client()) for each in running]
            return Site(clients, root, trained, lane)

        yield start


def reference(loaded: LoadedModel, request: RolloutRequest, sampling: Sampling) -> tuple[int, ...]:
    """Greedy `generate` of transformers on the learner's own model."""
    encoded = request.encoded
    ids = torch.tensor([encoded.prompt_token_ids])
    output = loaded.model.eval().generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.from_numpy(encoded.image.pixel_values),
        image_grid_thw=torch.tensor([encoded.image.grid]),
        mm_token_type_ids=(ids == loaded.image_token_id).int(),
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=list(sampling.stop_token_ids),
        suppress_tokens=list(sampling.banned_token_ids),
    )
    return tuple(output[0, ids.shape[1] :].tolist())


async def test_after_a_publish_servers_answer_as_the_learner_would(site_of, trained, requests_of, sampling) -> None:
    site, requests = await site_of({}, {}), requests_of(3)
    before = await site.answers(site.servers[0], requests, sampling, None)
    held = {name: tensor.clone() for name, tensor in full_weights(trained).items()}
    published: Published = await site.publisher.publish_if_stale(4)
    assert published.version.step == 4
    assert published.seconds > 0
    expected = {request.uid: reference(trained, request, sampling) for request in requests}
    for server in site.servers:
        assert await site.answers(server, requests, sampling, published.version) == expected
    assert before != expected
    assert all(torch.equal(tensor, held[name]) for name, tensor in full_weights(trained).items())
    assert site.left_behind() == []


async def test_weights_are_sent_once_a_step(site_of) -> None:
    site = await site_of({})
    first = await site.publisher.publish_if_stale(1)
    again = await site.publisher.publish_if_stale(1)
    assert again == Published(first.version, 0.0)
    later = await site.publisher.publish_if_stale(2)
    assert later.seconds > 0
    assert (await site.channels[0].status()).policy_version == later.version


async def test_another_learner_is_told_from_this_one(site_of, trained) -> None:
    site = await site_of({})
    await site.publisher.publish_if_stale(3)
    with ComputeLane() as lane:
        other = WeightPublisher(site.channels, FileTransport(site.root), partial(full_weights, trained), lane)
        published = await other.publish_if_stale(3)
    assert published.seconds > 0
    assert (await site.channels[0].status()).policy_version == published.version


async def test_weights_that_do_not_fit_are_refused_with_every_reason(site_of, tmp_path: Path) -> None:
    build_tiny(tmp_path / "smaller", hidden_size=64, num_hidden_layers=3)
    site = await site_of({}, {"model": str(tmp_path / "smaller")})
    with pytest.raises(WeightSyncFailed) as raised:
        await site.publisher.publish_if_stale(1)
    assert "has shape" in str(raised.value)
    assert "layers.3" in str(raised.value)
    assert site.left_behind() == []
    assert [(await channel.status()).policy_version for channel in site.channels] == [None, None]


async def test_a_failed_load_is_raised_and_repaired_by_the_next_publish(serving, scripted, trained, tmp_path) -> None:
    with serving(scripted({"fail_loads": 1}, weights_root=tmp_path)) as running, ComputeLane() as lane:
        async with running.client() as client:
            channel = WeightChannel(client, TIMEOUT_S)
            publisher = WeightPublisher([channel], FileTransport(tmp_path), partial(full_weights, trained), lane)
            with pytest.raises(WeightSyncFailed, match="says the script"):
                await publisher.publish_if_stale(1)
            assert (await channel.status()).phase == "tainted"
            published = await publisher.publish_if_stale(1)
            assert (await channel.status()).policy_version == published.version
            assert (await client.get("/ready/")).status_code == 200


async def test_a_server_that_is_gone_fails_the_publish(serving, scripted, trained, tmp_path) -> None:
    with serving(scripted({}, weights_root=tmp_path)) as running:
        client = running.client()
    with ComputeLane() as lane:
        async with client:
            publisher = WeightPublisher(
                [WeightChannel(client, TIMEOUT_S)], FileTransport(tmp_path), partial(full_weights, trained), lane
            )
            with pytest.raises(WeightSyncFailed, match=running.url):
                await publisher.publish_if_stale(1)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and list(path.glob("*.safetensors"))]

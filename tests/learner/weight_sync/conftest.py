"""A trained learner, and servers that it publishes to."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch

from learner.families.load import load_model
from learner.model.loaded import LoadedModel
from learner.servers.weights import WeightChannel
from learner.training.lane import ComputeLane
from learner.weight_sync.file import FileOutlet
from learner.weight_sync.outlet import Outlet
from learner.weight_sync.publisher import Snapshots, WeightPublisher
from learner.weight_sync.snapshot import full_weights

TIMEOUT_S = 20.0
TOUCHED = "layers.0.self_attn"


@pytest.fixture(scope="session")
def trained(checkpoint: Path) -> LoadedModel:
    """The served checkpoint after some training, as far as a server can tell; treat it as read-only."""
    loaded = load_model(str(checkpoint), dtype="float32", device="cpu")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return loaded


def touched_weights(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in full_weights(loaded).items() if TOUCHED in name}


@dataclass
class Site:
    """Running servers, and what is needed to publish to them."""

    root: Path
    loaded: LoadedModel
    lane: ComputeLane
    clients: list[httpx.AsyncClient]
    channels: list[WeightChannel] = field(init=False)

    def __post_init__(self) -> None:
        self.channels = [WeightChannel(client, TIMEOUT_S) for client in self.clients]

    def publisher(
        self, outlet: Outlet | None = None, *, merges: bool = False, fallback_to_full: bool = True
    ) -> WeightPublisher:
        """A learner process's publisher, of an incarnation of its own."""
        return WeightPublisher(
            self.channels,
            outlet or FileOutlet(),
            self.root,
            Snapshots(partial(full_weights, self.loaded), partial(touched_weights, self.loaded) if merges else None),
            self.lane,
            fallback_to_full=fallback_to_full,
        )

    async def take_over(self, index: int) -> None:
        """Let another learner publish to one of the servers."""
        other = replace(self, clients=[self.clients[index]])
        await other.publisher().publish_if_stale(9)

    async def held(self) -> list[object]:
        return [(await channel.status()).policy_version for channel in self.channels]

    def files(self) -> list[str]:
        """The kept weight files, by version and mode."""
        return sorted(file.parent.name.partition("-")[2] for file in self.root.glob("*/*.safetensors"))


@pytest.fixture
async def site_of(serving, scripted, trained: LoadedModel, tmp_path: Path) -> AsyncIterator[Callable]:
    """Start servers with these options of `scripted`, and clients with those."""
    root = tmp_path / "weights"
    root.mkdir()
    async with AsyncExitStack() as stack:

        async def start(*servers: dict, **client: object) -> Site:
            running = [stack.enter_context(serving(scripted(**{"weights_root": root, **each}))) for each in servers]
            clients = [await stack.enter_async_context(each.client(**client)) for each in running]
            return Site(root, trained, stack.enter_context(ComputeLane()), clients)

        yield start

"""A rollout server as a process of its own, one an engine, and a learner's side of it."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import httpx
import pytest
import yaml

from learner.data.encoding import Encoder
from learner.data.images import ImageReader
from learner.detection.record import Record
from learner.families.load import load_model, load_tokenizer
from learner.model.loaded import LoadedModel
from learner.servers.rollouts import RolloutServer
from learner.servers.weights import WeightChannel
from learner.training.lane import ComputeLane
from learner.types import Rollout, RolloutRequest
from learner.weight_sync.file import FileOutlet
from learner.weight_sync.http import HttpOutlet
from learner.weight_sync.outlet import Outlet
from learner.weight_sync.publisher import Snapshots, WeightPublisher
from learner.weight_sync.snapshot import full_weights, merged_weights
from rollout_server.settings import EngineName
from shared.config.training import TunerSection
from shared.wire import PolicyVersion, Sampling

TIMEOUT_S = 60.0
PREFIX_BLOCK = 32
"""Tokens, of vLLM on a CPU."""
ENGINES = [name for name in get_args(EngineName) if name != "scripted"]
OUTLETS: dict[str, Outlet] = {"file": FileOutlet(), "http": HttpOutlet(2**20)}


@dataclass
class ServerProcess:
    """`python -m rollout_server`, killed and started again at will; `url` changes then."""

    config: Path
    engine: str
    weights_root: Path
    url: str = ""
    process: subprocess.Popen[str] | None = None
    is_ready: bool = False

    def start(self) -> None:
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        command = [sys.executable, "-m", "rollout_server", "--config", str(self.config), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--engine", self.engine, "--weights-root", str(self.weights_root)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.is_ready = False

    def wait_until_ready(self) -> None:
        """It says so once; whoever asks later finds it as it is."""
        if self.is_ready:
            return
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("listening on "):
                self.url = f"http://{line.split()[-1]}"
            if line.startswith("ready"):
                self.is_ready = True
                return
        pytest.fail(f"the {self.engine} server ended with {self.process.wait()} before it was ready")

    def end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.communicate(timeout=20)


@pytest.fixture(scope="session")
def server_config(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    values = {
        "global_max_length": 640,
        "model": {"model": str(checkpoint), "dtype": "float32"},
        "training": {"output_dir": str(folder / "run")},
        "custom": {
            "trainer_variant": "stage2_ab_training",
            "train_jsonl": "none.jsonl",
            "extra": {
                "stage2_ab": {"schedule": {"pattern": ["B"]}},
                "rollout_matching": {"rollout_backend": "hf", "max_new_tokens": 64, "vllm": {"max_num_seqs": 32}},
            },
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def launched(server_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    """A server of each engine that is installed; one loads while another is tested."""
    names = [name for name in ENGINES if is_installed(name)]
    servers = {name: ServerProcess(server_config, name, tmp_path_factory.mktemp("weights")) for name in names}
    for server in servers.values():
        server.launch()
    yield servers
    for server in servers.values():
        server.end(signal.SIGTERM)


@pytest.fixture(scope="session", params=ENGINES)
def served(request: pytest.FixtureRequest, launched: dict[str, ServerProcess]) -> ServerProcess:
    """A server of each engine, shared by all tests; whoever uses it publishes first."""
    skip_unless_installed(request.param)
    server = launched[request.param]
    server.wait_until_ready()
    return server


@pytest.fixture
def mortal(request: pytest.FixtureRequest, server_config: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that a test may kill, of the engine that the fixture's parameter names."""
    skip_unless_installed(request.param)
    server = ServerProcess(server_config, request.param, tmp_path)
    server.start()
    yield server
    server.end(signal.SIGKILL)


def is_installed(engine: str) -> bool:
    return engine != "vllm" or find_spec("vllm") is not None


def skip_unless_installed(engine: str) -> None:
    if not is_installed(engine):
        pytest.skip("vLLM is not installed")


@dataclass
class Site:
    """A learner's view of one server: its model, what it asks for, and how it publishes."""

    root: Path
    client: httpx.AsyncClient
    lane: ComputeLane
    requests: Sequence[RolloutRequest]
    sampling: Sampling

    def __post_init__(self) -> None:
        self.channel = WeightChannel(self.client, TIMEOUT_S)

    def publisher(
        self, loaded: LoadedModel, transport: str = "file", *, merges: bool = False, **options: bool
    ) -> closing[WeightPublisher]:
        """A publisher of an incarnation of its own, as a context."""
        snapshots = Snapshots(partial(full_weights, loaded), partial(merged_weights, loaded) if merges else None)
        return closing(WeightPublisher([self.channel], OUTLETS[transport], self.root, snapshots, self.lane, **options))

    async def answers(self, version: PolicyVersion | None, count: int | None = None) -> list[tuple[int, ...]]:
        """What the server answers to the first `count` requests, in their order."""
        requests, answers = self.requests[:count], {}
        server = RolloutServer(self.client, TIMEOUT_S)
        async with aclosing(server.decode("b", requests, self.sampling, version)) as results:
            async for result in results:
                assert isinstance(result, Rollout), result
                answers[result.request.uid] = result.token_ids
        return [answers[request.uid] for request in requests]

    async def status_of(self, path: str) -> int:
        return (await self.client.get(path)).status_code


@pytest.fixture
async def site_of(requests: Sequence[RolloutRequest], sampling: Sampling) -> AsyncIterator[Callable]:
    """A learner's view of a server that listens at `url` and takes files under `root`."""
    async with AsyncExitStack() as stack:

        async def connect(url: str, root: Path) -> Site:
            client = httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S)
            lane = stack.enter_context(ComputeLane())
            return Site(root, await stack.enter_async_context(client), lane, requests, sampling)

        yield connect


@pytest.fixture
async def site(site_of: Callable, served: ServerProcess) -> Site:
    return await site_of(served.url, served.weights_root)


@pytest.fixture(scope="session")
def load(checkpoint: Path) -> Callable[..., LoadedModel]:
    """The served checkpoint as a learner loads it, in float32."""
    return lambda **tuner: load_model(
        str(checkpoint), dtype="float32", device="cpu", tuner=TunerSection(**tuner), seed=3
    )


@pytest.fixture(scope="session")
def requests(checkpoint: Path, image: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> list:
    """32 requests for one text and images of one size, so that they make one batch without padding.

    Long enough for several blocks of vLLM's prefix cache, which hold nothing of a shorter prompt.
    """
    folder = tmp_path_factory.mktemp("images")
    encoder = Encoder(
        load_tokenizer(str(checkpoint)), ImageReader.from_checkpoint(checkpoint), system="", user_prompt="Detect. " * 24
    )
    made = []
    for number in range(32):
        path = folder / f"{number}.png"
        path.write_bytes(image(number))
        made.append(
            RolloutRequest(encoder.encode_now(Record(f"image:{number}", (str(path),), 64, 64, ())), seed=number)
        )
    assert len(made[0].encoded.prompt_token_ids) > 2 * PREFIX_BLOCK
    return made


@pytest.fixture(scope="session")
def sampling(load: Callable[..., LoadedModel]) -> Sampling:
    config = load().model.config
    banned = (config.image_token_id, config.video_token_id)
    return Sampling(max_new_tokens=16, stop_token_ids=(7,), banned_token_ids=banned)

"""A tiny checkpoint whose answers vary, and servers that really listen."""

import asyncio
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest
from PIL import Image

from shared.companions import tolerate_cuda_builds
from shared.listening import bound_socket

if TYPE_CHECKING:  # nobody who starts no server waits for these
    import httpx

    from rollout_server.engines.base import Engine
    from rollout_server.settings import ServerSettings

# Before torch is imported. Models of this size have no work for a second thread, and several processes share the cores:
# threads that spin for each other made some tests ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the vLLM engine sets for itself, too late where torch has been imported.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# Before transformers is imported, as every program of ours that imports it.
tolerate_cuda_builds()

SLOW_TIMEOUT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts processes or trains may take longer than `timeout` in pyproject.toml.

    There a warning is no error either: vLLM's core is forked from this process with its filters, and would end by one.
    """
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
            item.add_marker(pytest.mark.filterwarnings("default"))


def png(seed: int = 0, width: int = 64, height: int = 64) -> bytes:
    """A noise image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL with weights large enough that its answers vary."""
    from safetensors.torch import load_file, save_file

    from learner.model.tiny import build_tiny

    directory = tmp_path_factory.mktemp("tiny")
    build_tiny(directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    save_file({name: t * 4 if t.ndim > 1 else t for name, t in tensors.items()}, file, metadata={"format": "pt"})
    return directory


@pytest.fixture
def scripted(checkpoint: Path, tmp_path: Path) -> "Callable[..., ServerSettings]":
    """Settings of a scripted engine: `scripted({"default": [1]}, token="…")`."""
    from rollout_server.settings import ServerSettings, limits_for

    def settings(script: dict[str, object] | None = None, **options: object) -> ServerSettings:
        file = tmp_path / "script.json"
        file.write_bytes(orjson.dumps(script or {}))
        plain = ServerSettings(str(checkpoint), "scripted", limits_for(256, 4), script=file, heartbeat_s=0.05)
        return replace(plain, **options)

    return settings


@dataclass(frozen=True)
class RunningServer:
    """A server on a port of its own."""

    url: str
    engine: "Engine"

    def client(self, **options: object) -> "httpx.AsyncClient":
        import httpx

        return httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=10, **options)


@contextmanager
def run_server(settings: "ServerSettings", send_buffer: int | None = None) -> Iterator[RunningServer]:
    """Serve in a thread, through a real socket, until the block ends; `send_buffer` is SO_SNDBUF."""
    import uvicorn

    from rollout_server.app import create_app
    from rollout_server.engines.table import build_engine

    listener = bound_socket("127.0.0.1", 0)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.listen()  # so that the first request waits for uvicorn instead of being refused
    engine = build_engine(settings)
    app = create_app(engine, settings)
    config = uvicorn.Config(app, lifespan="off", log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    started = threading.Event()

    async def main() -> None:
        await engine.start()
        await app.state.weights.start()
        started.set()
        await server.serve(sockets=[listener])
        app.state.weights.close()
        await engine.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert started.wait(120)
        yield RunningServer(f"http://127.0.0.1:{listener.getsockname()[1]}", engine)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[RunningServer]]:
    return run_server


@pytest.fixture(scope="session")
def image() -> Callable[..., bytes]:
    return png


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images to train on and 8 to validate on."""
    from learner.data.shapes import render_shapes

    folder = tmp_path_factory.mktemp("shapes")
    assert sum(render_shapes(folder, train=64, val=8, seed=1, num_workers=1)) == 72
    return folder

"""A tiny checkpoint, requests for it, and servers that really listen."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
import uvicorn
from PIL import Image

from rollout_server.app import create_app
from rollout_server.engines.base import Engine
from rollout_server.launch import bound_socket, build_engine
from rollout_server.settings import ServerSettings, limits_for
from shared.wire import InlineImage, RolloutBatch, RolloutSample, Sampling

STOP_ID = 7


@dataclass(frozen=True)
class TinyPrompts:
    """Requests in the ids of the tiny checkpoint."""

    image_id: int
    start_id: int
    end_id: int
    video_id: int

    def ids(self, num_text: int = 5) -> tuple[int, ...]:
        """A prompt with one image and `num_text` words."""
        return (self.start_id, self.image_id, self.end_id, *range(20, 20 + num_text))

    def sampling(self, max_new_tokens: int = 12, **options: object) -> Sampling:
        banned = (self.image_id, self.video_id)
        return Sampling(max_new_tokens=max_new_tokens, stop_token_ids=(STOP_ID,), banned_token_ids=banned, **options)

    def batch(self, *uids: str, batch_id: str = "b", **options: object) -> RolloutBatch:
        samples = tuple(
            RolloutSample(uid=uid, prompt_token_ids=self.ids(), images=(InlineImage(data=png(seed)),), seed=seed)
            for seed, uid in enumerate(uids)
        )
        return RolloutBatch(**{"batch_id": batch_id, "sampling": self.sampling(), "samples": samples, **options})


def png(seed: int = 0, width: int = 64, height: int = 64) -> bytes:
    """A noise image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL with weights large enough that its answers vary."""
    from learner.model.tiny import build_tiny
    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("tiny")
    build_tiny(directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    save_file({name: t * 4 if t.ndim > 1 else t for name, t in tensors.items()}, file, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def prompts(checkpoint: Path) -> TinyPrompts:
    config = orjson.loads((checkpoint / "config.json").read_bytes())
    return TinyPrompts(
        config["image_token_id"],
        config["vision_start_token_id"],
        config["vision_end_token_id"],
        config["video_token_id"],
    )


@pytest.fixture
def scripted(checkpoint: Path, tmp_path: Path) -> Callable[..., ServerSettings]:
    """Settings of a scripted engine: `scripted({"default": [1]}, token="…")`."""

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
    engine: Engine

    def client(self, **options: object) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=10, **options)


@contextmanager
def run_server(settings: ServerSettings) -> Iterator[RunningServer]:
    """Serve in a thread, through a real socket, until the block ends."""
    listener = bound_socket("127.0.0.1", 0)
    engine = build_engine(settings)
    config = uvicorn.Config(
        create_app(engine, settings), lifespan="off", log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    started = threading.Event()

    async def main() -> None:
        await engine.start()
        started.set()
        await server.serve(sockets=[listener])
        await engine.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert started.wait(30)
        yield RunningServer(f"http://127.0.0.1:{listener.getsockname()[1]}", engine)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
    assert not thread.is_alive()


@pytest.fixture
def serving() -> Callable[[ServerSettings], AbstractContextManager[RunningServer]]:
    return run_server


@pytest.fixture
def image() -> Callable[..., bytes]:
    return png

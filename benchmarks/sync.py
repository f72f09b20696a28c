"""`python -m benchmarks.sync [--engine vllm|hf] [--runs 5]`: publishing weights against moving the same bytes.

A publish is all of section "A weight update" in docs/wire.md: snapshot, file, digest, transfer, verification, load and
canary, from the learner's model into a server process of its own, with vLLM where it is installed. `file` is compared
with writing the same bytes to the same folder and reading them back, `http` with one POST of them to a route that takes
them as one body; `http floor`, with no aim, with the fastest way known here, in parts to a route that drops them, so
that nobody has them in the end. `full` is a run that trains all weights, `merged` one that trains LoRA on the
feed-forward layers, merging included; `merged share` compares the bytes of the tensors that it sends with what these
layers are of all.
"""

import argparse
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import httpx
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI, Request
from transformers.utils.logging import disable_progress_bar

from benchmarks.measure import compared, print_measure
from benchmarks.two_processes import free_port, servers, write_config
from learner.decoding.opening import publisher_of
from learner.families.load import load_model
from learner.model.loaded import LoadedModel
from learner.model.tiny import build_tiny
from learner.servers.weights import WeightChannel
from learner.training.lane import ComputeLane
from learner.weight_sync.publisher import Published, WeightPublisher
from shared.config.load import load_config
from shared.config.training import TunerSection
from shared.weight_wire import WEIGHTS_FILE, SyncMode, Transport
from shared.weights_root import SHARED_MEMORY

SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
TOUCHED = ("gate_proj", "up_proj", "down_proj")
TUNERS: dict[SyncMode, TunerSection] = {
    "full": TunerSection(),
    "merged": TunerSection(train_type="lora", target_modules=TOUCHED),
}
ROLLOUT = "custom.extra.rollout_matching"
VALUES = {
    "global_max_length": 512,
    "custom.train_jsonl": "none.jsonl",
    "custom.extra.stage2_ab.schedule.pattern": ["B"],
    f"{ROLLOUT}.max_new_tokens": 64,
}
TIMEOUT_S = 120.0
PART_BYTES = 2**20
WRITING, POSTING, DROPPING = (
    "writing and reading the same bytes",
    "one POST of the same bytes",
    "one POST of the same bytes in parts that are dropped",
)


@dataclass(frozen=True)
class Bench:
    """A server of `engine` at `url`, and the learner's side of it; publishers live on the loop of `portal`."""

    engine: str
    url: str
    config: Path
    root: Path
    portal: BlockingPortal

    @asynccontextmanager
    async def publisher(
        self, loaded: LoadedModel, mode: SyncMode, transport: Transport
    ) -> AsyncIterator[WeightPublisher]:
        """The publisher of a run that is configured so."""
        sync = f"{ROLLOUT}.vllm.sync"
        config = load_config(self.config, [f"{sync}.mode={mode}", f"{sync}.transport={transport}"])
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=self.url, trust_env=False))
            channels = [WeightChannel(client, TIMEOUT_S)]
            lane = stack.enter_context(ComputeLane())
            yield stack.enter_context(closing(publisher_of(config, channels, loaded, lane)))

    def measure(self, loaded: LoadedModel, mode: SyncMode, transport: Transport, runs: int) -> int:
        """Print how long publishing takes as a multiple of moving the bytes; returns how many those of tensors are."""
        steps = itertools.count()
        with self.portal.wrap_async_context_manager(self.publisher(loaded, mode, transport)) as weights:

            def publish() -> Published:
                return self.portal.call(weights.publish_if_stale, next(steps))

            publish()  # the first one is full whatever the mode
            num_bytes = publish().sent_bytes
            (file,) = self.root.glob(f"*-{mode}/{WEIGHTS_FILE}")
            tensor_bytes = num_bytes - _header_bytes(file)
            with self.watch_progress(num_bytes, transport) as baselines:
                results = {name: compared(publish, move, runs) for name, move in baselines.items()}
        for baseline, result in results.items():
            print_measure(
                "sync",
                f"{mode} {transport}" + (" floor" if baseline == DROPPING else ""),
                result.ratio,
                "none" if baseline == DROPPING else "<= 2",
                baseline,
                result.runs,
                engine=self.engine,
                megabytes=round(num_bytes / 1e6, 1),
                seconds=round(result.ours_s, 3),
                baseline_seconds=round(result.baseline_s, 3),
            )
        return tensor_bytes

    @contextmanager
    def watch_progress(self, num_bytes: int, transport: Transport) -> Iterator[dict[str, Callable[[], object]]]:
        """The baselines by name: functions that move so many bytes once."""
        data = os.urandom(num_bytes)
        if transport == "file":
            with TemporaryDirectory(dir=self.root) as folder:
                yield {WRITING: lambda: _write_and_read(Path(folder) / "data", data)}
        else:
            client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)
            with bare_routes() as url, self.portal.wrap_async_context_manager(client):
                yield {
                    POSTING: lambda: self.portal.call(_post, client, f"{url}/take", data),
                    DROPPING: lambda: self.portal.call(_post_in_parts, client, f"{url}/drop", data),
                }


async def _post(client: httpx.AsyncClient, url: str, data: bytes) -> None:
    response = await client.post(url, content=data)
    response.raise_for_status()


async def _post_in_parts(client: httpx.AsyncClient, url: str, data: bytes) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), PART_BYTES):
            yield data[start : start + PART_BYTES]

    response = await client.post(url, content=parts(), headers={"content-length": str(len(data))})
    response.raise_for_status()


def _header_bytes(file: Path) -> int:
    """Of a safetensors file: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def _write_and_read(file: Path, data: bytes) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(data)
    assert len(file.read_bytes()) == len(data)


@contextmanager
def bare_routes() -> Iterator[str]:
    """A process with a route that takes a body, and one that drops it as it comes in; yields its address."""
    port = free_port()
    process = get_context("spawn").Process(target=_serve_bare_routes, args=(port,), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{port}"
    transport = httpx.HTTPTransport(retries=10)  # it waits twice as long each time
    with httpx.Client(transport=transport, timeout=TIMEOUT_S, trust_env=False) as client:
        client.post(f"{url}/take", content=b"").raise_for_status()
    yield url
    process.terminate()
    process.join()


def _serve_bare_routes(port: int) -> None:
    app = FastAPI()

    @app.post("/take")
    async def take(request: Request) -> int:
        return len(await request.body())

    @app.post("/drop")
    async def drop(request: Request) -> None:
        async for _ in request.stream():
            pass

    uvicorn.run(app, port=port, log_level="warning")


def print_share(loaded: LoadedModel, full_bytes: int, merged_bytes: int) -> None:
    """Print the bytes of a merged update as a multiple of what the touched weights are of all."""
    sizes = {name: each.numel() for name, each in loaded.model.named_parameters() if "lora_" not in name}
    share = sum(size for name, size in sizes.items() if any(part in name for part in TOUCHED)) / sum(sizes.values())
    ratio, baseline = merged_bytes / (share * full_bytes), "the touched weights' share of a full update"
    print_measure("sync", "merged share", ratio, "<= 1", baseline, 1, share=round(share, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description="Publishing weights against moving the same bytes.")
    default = "hf" if find_spec("vllm") is None else "vllm"
    parser.add_argument("--engine", choices=["vllm", "hf"], default=default, help="what the server decodes with")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs that are compared")
    options = parser.parse_args()
    disable_progress_bar()
    shared_memory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        root = Path(stack.enter_context(TemporaryDirectory(dir=shared_memory)))
        build_tiny(folder / "model", **SIZES)
        told = {f"{ROLLOUT}.rollout_backend": options.engine, f"{ROLLOUT}.vllm.sync.weights_root": str(root)}
        config = write_config(folder, folder / "model", {**VALUES, **told})
        (url,) = stack.enter_context(servers(config, folder, [[]], core=None))
        bench = Bench(options.engine, url, config, root, stack.enter_context(start_blocking_portal()))
        sent: dict[SyncMode, int] = {}
        for mode, tuner in TUNERS.items():
            loaded = load_model(str(folder / "model"), dtype="float32", device="cpu", tuner=tuner)
            for transport in get_args(Transport):
                sent[mode] = bench.measure(loaded, mode, transport, options.runs)
        print_share(loaded, sent["full"], sent["merged"])


if __name__ == "__main__":
    main()

"""`python -m benchmarks.service [--engine vllm|hf] [--runs 3]`: `/rollouts` against the engine's own offline generate.

A server process on one side, the same engine with the same settings in this process on the other, in turns; each turn
has images of its own, which both sides get as the same PNG bytes, and nothing is turned into text on either. The ratio
is tokens per second, ours / offline, every answer as long as asked: `stream 384` and `stream 128` send one batch.
`a POST each` sends as many requests as there are prompts, `batches of 2` one small batch after the other, timed once:
it takes long.
"""

import argparse
import asyncio
import io
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import httpx
import orjson
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from benchmarks.measure import print_measure
from benchmarks.two_processes import SIZES, run_as_child, servers, write_config
from learner.model.tiny import build_tiny
from rollout_server.engines.base import EngineAnswer, EngineRequest
from rollout_server.engines.table import build_engine
from rollout_server.settings import EngineName, ServerSettings, limits_for
from shared.wire import InlineImage, RolloutBatch, RolloutSample, Sampling

NUM_PROMPTS = 128
MAX_MODEL_LEN, MAX_NUM_SEQS = 512, 64
SIDE_PX = 128
NUM_TEXT_TOKENS = 12
ROLLOUT = "custom.extra.rollout_matching"
BASELINE = "the engine's own offline generate"
AIMS = {384: ">= 0.97", 128: ">= 0.92"}


class Offline(Protocol):
    """The engine without a server."""

    def generate(self, requests: Sequence[EngineRequest]) -> int:
        """Decode all and return the number of tokens."""


class OfflineVllm:
    """`vllm.LLM`, the class that people decode data sets with."""

    def __init__(self, settings: ServerSettings) -> None:
        from vllm import LLM

        from rollout_server.engines.vllm.start import engine_arguments

        arguments = engine_arguments(settings, settings.model)
        self._llm = LLM(**{name: value for name, value in arguments.items() if name != "worker_extension_cls"})

    def generate(self, requests: Sequence[EngineRequest]) -> int:
        from rollout_server.engines.vllm.sampling import sampling_params

        prompts = [
            {
                "prompt_token_ids": list(request.prompt_token_ids),
                "multi_modal_data": {"image": [Image.open(io.BytesIO(data)).convert("RGB") for data in request.images]},
                "multi_modal_uuids": {"image": [sha256(data).hexdigest() for data in request.images]},
            }
            for request in requests
        ]
        params = [sampling_params(request) for request in requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)


class OfflineHf:
    """The transformers engine, called directly."""

    def __init__(self, settings: ServerSettings) -> None:
        self._engine = build_engine(settings)
        asyncio.run(self._engine.start())

    def generate(self, requests: Sequence[EngineRequest]) -> int:
        return asyncio.run(self._tokens(requests))

    async def _tokens(self, requests: Sequence[EngineRequest]) -> int:
        async with aclosing(self._engine.generate(requests)) as results:
            return sum([len(each.token_ids) async for each in results if isinstance(each, EngineAnswer)])


OFFLINE: dict[EngineName, Callable[[ServerSettings], Offline]] = {"vllm": OfflineVllm, "hf": OfflineHf}


@dataclass(frozen=True)
class Bench:
    """A server at `url` and the same engine beside it."""

    url: str
    offline: Offline
    image_prompt: tuple[int, ...]
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def requests(self, max_new_tokens: int) -> list[EngineRequest]:
        """Prompts with images that no request before had."""
        sampling = Sampling(max_new_tokens=max_new_tokens, stop_token_ids=())
        images = [_png(self.rng) for _ in range(NUM_PROMPTS)]
        return [EngineRequest(str(n), self.image_prompt, (image,), sampling) for n, image in enumerate(images)]

    async def post(self, client: httpx.AsyncClient, requests: Sequence[EngineRequest], batch_id: str) -> int:
        """One batch to the end of its stream; returns the number of tokens."""
        batch = RolloutBatch(
            batch_id=batch_id,
            sampling=requests[0].sampling,
            samples=tuple(
                RolloutSample(
                    uid=request.uid,
                    prompt_token_ids=request.prompt_token_ids,
                    images=tuple(InlineImage(data=data) for data in request.images),
                )
                for request in requests
            ),
        )
        tokens = 0
        async with client.stream("POST", "/rollouts", content=batch.model_dump_json()) as response:
            async for line in response.aiter_lines():
                tokens += len(orjson.loads(line).get("token_ids", ()))
        return tokens


Sender = Callable[[Bench, httpx.AsyncClient, Sequence[EngineRequest]], Awaitable[int]]


async def at_once(bench: Bench, client: httpx.AsyncClient, requests: Sequence[EngineRequest]) -> int:
    return await bench.post(client, requests, "all")


async def one_each(bench: Bench, client: httpx.AsyncClient, requests: Sequence[EngineRequest]) -> int:
    return sum(await asyncio.gather(*(bench.post(client, [request], request.uid) for request in requests)))


async def two_by_two(bench: Bench, client: httpx.AsyncClient, requests: Sequence[EngineRequest]) -> int:
    pairs = [requests[start : start + 2] for start in range(0, len(requests), 2)]
    return sum([await bench.post(client, pair, pair[0].uid) for pair in pairs])


def measure(bench: Bench, name: str, send: Sender, max_new_tokens: int, aim: str, runs: int) -> None:
    """Print the median ratio of `runs` pairs."""
    rates = [_pair(bench, send, bench.requests(max_new_tokens)) for _ in range(runs)]
    ours, offline = (statistics.median(side) for side in zip(*rates, strict=True))
    ratio = statistics.median(mine / theirs for mine, theirs in rates)
    rounded = {"tokens_per_s": round(ours), "offline_tokens_per_s": round(offline)}
    print_measure(
        "service", name, ratio, aim, BASELINE, runs, prompts=NUM_PROMPTS, new_tokens=max_new_tokens, **rounded
    )


def _pair(bench: Bench, send: Sender, requests: Sequence[EngineRequest]) -> tuple[float, float]:
    """Tokens per second of the server and of the engine alone."""
    expected = len(requests) * requests[0].sampling.max_new_tokens

    async def stream() -> int:
        async with httpx.AsyncClient(base_url=bench.url, trust_env=False, timeout=None) as client:
            return await send(bench, client, requests)

    rates = []
    for work in (lambda: asyncio.run(stream()), lambda: bench.offline.generate(requests)):
        began = time.perf_counter()
        tokens = work()
        rates.append(tokens / (time.perf_counter() - began))
        if tokens != expected:
            raise RuntimeError(f"{tokens} tokens decoded, {expected} asked for")
    return rates[0], rates[1]


def _png(rng: random.Random) -> bytes:
    data = io.BytesIO()
    Image.frombytes("RGB", (SIDE_PX, SIDE_PX), rng.randbytes(3 * SIDE_PX**2)).save(data, "PNG")
    return data.getvalue()


def _image_prompt(model: Path) -> tuple[int, ...]:
    config: dict[str, Any] = orjson.loads((model / "config.json").read_bytes())
    ids = (config["vision_start_token_id"], config["image_token_id"], config["vision_end_token_id"])
    return (*ids, *range(20, 20 + NUM_TEXT_TOKENS))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--engine", choices=sorted(OFFLINE), default="vllm")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    disable_progress_bar()
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder, model = Path(name), Path(name) / "model"
        build_tiny(model, **SIZES)
        values = {
            "global_max_length": MAX_MODEL_LEN,
            "custom.train_jsonl": "none.jsonl",
            "custom.extra.stage2_ab.schedule.pattern": ["B"],
            f"{ROLLOUT}.rollout_backend": options.engine,
            f"{ROLLOUT}.max_new_tokens": max(AIMS),
            f"{ROLLOUT}.vllm.max_num_seqs": MAX_NUM_SEQS,
        }
        config = write_config(folder, model, values)
        (url,) = stack.enter_context(servers(config, folder, [()], core=None))
        limits = limits_for(MAX_MODEL_LEN, MAX_NUM_SEQS)
        offline = OFFLINE[options.engine](ServerSettings(str(model), options.engine, limits, dtype="float32"))
        bench = Bench(url, offline, _image_prompt(model))
        _pair(bench, at_once, bench.requests(min(AIMS)))  # does not count
        for max_new_tokens, aim in AIMS.items():
            measure(bench, f"stream {max_new_tokens}", at_once, max_new_tokens, aim, options.runs)
        measure(bench, "a POST each", one_each, min(AIMS), "none", options.runs)
        measure(bench, "batches of 2", two_by_two, min(AIMS), "none", 1)


if __name__ == "__main__":
    if version("torch").endswith("+cpu"):
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as the server does for itself
    run_as_child("benchmarks.service")
    main()

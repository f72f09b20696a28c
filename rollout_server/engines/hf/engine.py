"""The embedded engine: transformers on one decoding thread, nothing beyond the base install.

The event loop fills `_waiting`, the decoding thread drains it as rows become free; each answer goes back to the loop
by `call_soon_threadsafe` into the stream of its call, which has room for all of them. The thread runs while there is
work and is free for other jobs, such as loading weights, when there is none.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from rollout_server.engines.base import (
    EngineFailure,
    EngineLoad,
    EngineRequest,
    EngineResult,
    ModelTensors,
    WeightSource,
    failure_of,
)
from rollout_server.engines.hf.batch import DecodeBatch
from rollout_server.engines.hf.checkpoint import Checkpoint, load_checkpoint, replace_weights, tensors_of
from rollout_server.engines.hf.prompt import Prompt, PromptBuilder
from rollout_server.engines.hf.row import Row
from rollout_server.engines.stopping import StopRule
from rollout_server.settings import ServerSettings
from shared.errors import EngineFailed
from shared.wire import ComponentHealth

T = TypeVar("T")
ResultSender = MemoryObjectSendStream[EngineResult]


class HfEngine:
    """Engine (see base.py) over a transformers model, on a GPU if there is one, else on the CPU."""

    name = "hf"
    capabilities: tuple[str, ...] = ("logprobs", "object_limit", "stop_decision")

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._lock = threading.Lock()
        self._waiting: deque[Row] = deque()
        self._decoding = False
        self._senders: set[ResultSender] = set()
        self._failure: str | None = None
        self._checkpoint: Checkpoint | None = None

    async def start(self) -> None:
        checkpoint = await self._on_thread(lambda: load_checkpoint(self._settings))
        self._prompts = PromptBuilder(
            checkpoint.model, checkpoint.family, checkpoint.image_processor, self._settings.limits
        )
        self._batch = DecodeBatch(checkpoint.model, checkpoint.family, self._settings.limits.max_num_seqs)
        self._checkpoint = checkpoint

    async def close(self) -> None:
        with self._lock:
            self._waiting.clear()
        for sender in tuple(self._senders):
            sender.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncGenerator[EngineResult, None]:
        loop = asyncio.get_running_loop()
        sender, receiver = anyio.create_memory_object_stream[EngineResult](max_buffer_size=len(requests))

        def deliver(result: EngineResult) -> None:
            loop.call_soon_threadsafe(_offer, sender, result)

        rows, failures = await anyio.to_thread.run_sync(self._prepare, requests, deliver)
        self._senders.add(sender)
        try:
            self._submit(rows)
            with receiver:
                for failure in failures:
                    yield failure
                for _ in rows:
                    yield await receiver.receive()
        except anyio.EndOfStream:
            raise EngineFailed(self._failure or "the engine was closed") from None
        finally:
            self._senders.discard(sender)
            sender.close()
            for row in rows:
                row.cancelled = True

    def tensors(self) -> ModelTensors:
        return tensors_of(self._loaded().model)

    async def load_weights(self, source: WeightSource) -> None:
        model = self._loaded().model
        await self._on_thread(self._batch.clear_cache)
        await self._on_thread(lambda: replace_weights(model, source.path))

    def canary(self) -> EngineRequest:
        self._loaded()
        return self._prompts.canary_request()

    def health(self) -> ComponentHealth:
        if self._failure:
            return ComponentHealth(name="engine", live=False, ready=False, reason=self._failure)
        if self._checkpoint is None:
            return ComponentHealth(name="engine", live=True, ready=False, reason=f"loading {self._settings.model}")
        return ComponentHealth(name="engine", live=True, ready=True)

    def load(self) -> EngineLoad:
        if self._checkpoint is None:
            return EngineLoad(running=0, waiting=0, generated_tokens=0)
        return EngineLoad(len(self._batch.rows), len(self._waiting), self._batch.generated_tokens)

    def _loaded(self) -> Checkpoint:
        if self._checkpoint is None:
            raise EngineFailed(self._failure or f"{self._settings.model} is still loading")
        return self._checkpoint

    async def _on_thread(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def _prepare(
        self, requests: Sequence[EngineRequest], deliver: Callable[[EngineResult], None]
    ) -> tuple[list[Row], list[EngineFailure]]:
        text_of = self._loaded().text_of
        rows, failures = [], []
        built: Built | None = None
        for request in requests:
            if built is None or not built.serves(request):
                built = Built.of(request, self._prompts)
            if isinstance(built.prompt, Prompt):
                rows.append(Row(request, built.prompt, StopRule(request.sampling, text_of), deliver))
            else:
                failures.append(failure_of(request, built.prompt))
        return rows, failures

    def _submit(self, rows: Sequence[Row]) -> None:
        """Queue all of `rows` at once, so that what joins together does not depend on timing."""
        with self._lock:
            if self._failure:
                raise EngineFailed(self._failure)
            self._waiting.extend(rows)
            if self._decoding:
                return
            self._decoding = True
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._decode_until_idle)
        running.add_done_callback(self._stopped)

    def _decode_until_idle(self) -> None:
        while self._admit():
            self._batch.step()

    def _admit(self) -> bool:
        """Let waiting rows join as far as there is room; returns whether there is anything to decode."""
        with self._lock:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            joining = [self._waiting.popleft() for _ in range(min(self._batch.num_free, len(self._waiting)))]
            self._decoding = bool(joining or self._batch.rows)
        if joining:
            self._batch.join(joining)
        return self._decoding

    def _stopped(self, running: "asyncio.Future[None]") -> None:
        """A decoding that ended by an error ends the engine and every open call."""
        if running.cancelled() or (error := running.exception()) is None:
            return
        self._failure = f"decoding failed: {error!r}"
        for sender in tuple(self._senders):
            sender.close()


@dataclass(frozen=True)
class Built:
    """The prompt of a request, or why there is none; siblings, which come next, have the same."""

    request: EngineRequest
    prompt: Prompt | Exception

    @classmethod
    def of(cls, request: EngineRequest, prompts: PromptBuilder) -> "Built":
        try:
            return cls(request, prompts.build(request))
        except Exception as error:
            return cls(request, error)

    def serves(self, other: EngineRequest) -> bool:
        """Whether another request has the very same prompt and images, and may be as long."""
        mine = self.request
        return (
            other.images is mine.images
            and other.prompt_token_ids is mine.prompt_token_ids
            and other.sampling.max_new_tokens == mine.sampling.max_new_tokens
        )


def _offer(sender: ResultSender, result: EngineResult) -> None:
    """Send, unless the call has been closed meanwhile."""
    with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
        sender.send_nowait(result)

"""The vLLM engine: AsyncLLM in this process, its engine core in another; all open calls share one continuous batch.

vLLM itself is imported by `core.py` when the engine starts, on a thread, so that the server answers its probes
meanwhile. The thread lives as long as the engine.
"""

import asyncio
import multiprocessing
import shutil
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from rollout_server.engines.base import EngineLoad, EngineRequest, EngineResult, ModelTensors, WeightSource
from rollout_server.engines.vllm.environment import check_version, prepare_environment, unfit_installation
from rollout_server.settings import ServerSettings
from shared.errors import ConfigError, EngineFailed
from shared.streams import task_group
from shared.wire import ComponentHealth

if TYPE_CHECKING:
    from rollout_server.engines.vllm.core import VllmCore

T = TypeVar("T")


class VllmEngine:
    """Engine (see base.py) over vLLM, on GPUs or on the CPU."""

    name = "vllm"
    capabilities: tuple[str, ...] = ("logprobs", "object_limit", "stop_decision")

    def __init__(self, settings: ServerSettings) -> None:
        """Raises ConfigError when vLLM is not installed, or in a version this engine was not written for."""
        check_version()
        self._settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm")
        self._sockets = ""
        self._core: VllmCore | None = None

    async def start(self) -> None:
        """Start vLLM. Raises ConfigError for one that lacks what the engine uses, and for settings that it refuses."""
        self._sockets = prepare_environment()
        core = await self._on_thread(lambda: _started(self._settings))
        await core.settle()
        self._core = core

    async def close(self) -> None:
        core, self._core = self._core, None
        if core is None:
            # Still starting: nobody can be asked to end it, and the thread cannot be interrupted.
            for child in multiprocessing.active_children():
                child.kill()
        else:
            await self._on_thread(core.close)
        self._thread.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self._sockets, ignore_errors=True)

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncGenerator[EngineResult, None]:
        core = self._running()
        sender, receiver = anyio.create_memory_object_stream[EngineResult](max_buffer_size=len(requests))
        # Both ends outlive the tasks, so that a call that is closed early meets no broken stream.
        with sender, receiver:
            async with task_group() as tasks:
                for request in requests:
                    tasks.start_soon(_answer_into, core, request, sender)
                for _ in requests:
                    yield await receiver.receive()

    def tensors(self) -> ModelTensors:
        return self._running().tensors

    async def load_weights(self, source: WeightSource) -> None:
        await self._running().load_weights(source)

    def canary(self) -> EngineRequest:
        return self._running().rules.canary_request()

    def health(self) -> ComponentHealth:
        if self._core is None:
            return ComponentHealth(name="engine", live=True, ready=False, reason=f"loading {self._settings.model}")
        if self._core.is_dead:
            return ComponentHealth(name="engine", live=False, ready=False, reason=self._core.DIED)
        return ComponentHealth(name="engine", live=True, ready=True)

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0, 0) if self._core is None else self._core.load()

    def _running(self) -> "VllmCore":
        health = self.health()
        if self._core is None or not health.live:
            raise EngineFailed(health.reason)
        return self._core

    async def _on_thread(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)


def _started(settings: ServerSettings) -> "VllmCore":
    try:
        import rollout_server.engines.vllm.worker  # noqa: F401 - what vLLM's own processes import later
        from rollout_server.engines.vllm.core import VllmCore
    except ImportError as error:
        raise ConfigError(unfit_installation(error)) from error
    return VllmCore(settings)


async def _answer_into(core: "VllmCore", request: EngineRequest, sender: MemoryObjectSendStream[EngineResult]) -> None:
    await sender.send(await core.answer(request))

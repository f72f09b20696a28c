"""A server of the transformers engine with the delays and orders of a script (see rollout_server/engines/scripted.py).

`python -m tests.end_to_end.disturbed_server --script FILE …` is `python -m rollout_server …`, and decodes as that does.
A delay holds a finished answer back, a cut comes after the first answer of a batch; what hangs, or dies by an error, is
the decoding thread itself.
"""

import runpy
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import anyio

from rollout_server.engines.base import EngineRequest, EngineResult
from rollout_server.engines.hf import engine
from rollout_server.engines.scripted import Fault, read_script
from rollout_server.settings import ServerSettings
from shared.streams import task_group

CUT_AFTER_S = 0.2
"""The answer before the cut has left by then."""


class DisturbedEngine(engine.HfEngine):
    """The engine, and what a script does to it."""

    def __init__(self, settings: ServerSettings) -> None:
        super().__init__(settings)
        self._script, self._port = read_script(settings.script), settings.port
        self._fault: Fault | None = None

    async def start(self) -> None:
        await super().start()
        step = self._batch.step

        def disturbed() -> None:
            fault, self._fault = self._fault, None
            if fault == "hang":
                threading.Event().wait()
            if fault == "die":
                raise RuntimeError("the device is gone, says the script")
            step()

        self._batch.step = disturbed

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncGenerator[EngineResult, None]:
        sender, receiver = anyio.create_memory_object_stream[EngineResult](len(requests))
        answers = super().generate(requests)
        fault = self._script.fault_of(requests[0].uid, self._port)
        self._fault = fault if fault != "cut" else None

        async def hold_back(result: EngineResult) -> None:
            await anyio.sleep(self._script.delays.get(result.uid, 0.0))
            sender.send_nowait(result)

        async def decode() -> None:
            async with aclosing(answers) as results:
                async for result in results:
                    tasks.start_soon(hold_back, result)

        async with task_group() as tasks:
            tasks.start_soon(decode)
            for _ in requests:
                yield await receiver.receive()
                if fault == "cut":
                    await anyio.sleep(CUT_AFTER_S)
                    raise ConnectionAbortedError("the stream is cut, says the script")


if __name__ == "__main__":
    engine.HfEngine = DisturbedEngine
    runpy.run_module("rollout_server", run_name="__main__", alter_sys=True)

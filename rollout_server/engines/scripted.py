"""An engine without a model: answers, delays and faults from a script, for tests and for soaking the pipeline.

It reads a checkpoint's directory for its prompt rules and tensor names, never its weights. The script is a JSON file
with any of the fields of `Script`.
"""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import anyio
import orjson
from anyio.streams.memory import MemoryObjectSendStream
from safetensors import safe_open

from rollout_server.engines.base import (
    EngineAnswer,
    EngineFailure,
    EngineLoad,
    EngineRequest,
    EngineResult,
    ModelTensors,
    WeightSource,
    failure_of,
)
from rollout_server.engines.prompt_rules import Grid, PromptRules, read_rules
from rollout_server.engines.stopping import StopRule
from rollout_server.settings import ServerSettings
from shared.errors import ConfigError, EngineFailed, WeightSyncFailed
from shared.streams import task_group
from shared.wire import ComponentHealth, FinishReason, Sampling

CANARY = "canary"
Fault = Literal["error", "die", "hang", "cut", "nan"]


@dataclass(frozen=True)
class Script:
    """What the engine answers.

    An answer is `answers[uid]`, else `default`, said again and again until the stop rule ends it. `delays` (seconds)
    come before the first token. A fault is one sample's error line, the engine's death, an answer that never comes, a
    stream that is cut, or log-probabilities that are not finite; the canary's uid is "canary". `orders` is a folder
    ("{port}" in it stands for the server's): a file in it that is named as a fault is taken away by the next answer,
    which then has that fault. `fail_loads` weight loads fail, `nan_loads` are followed by a canary that is not finite,
    then they work.
    """

    answers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    default: Sequence[int] = (0,)
    seconds_per_token: float = 0.0
    start_s: float = 0.0
    delays: Mapping[str, float] = field(default_factory=dict)
    faults: Mapping[str, Fault] = field(default_factory=dict)
    orders: str | None = None
    fail_loads: int = 0
    nan_loads: int = 0

    def fault_of(self, uid: str, port: int) -> Fault | None:
        """What is to befall the next answer, that of `uid`, of the server at `port`; an order is carried out once."""
        if self.orders is not None and uid != CANARY:
            orders = Path(self.orders.replace("{port}", str(port)))
            faults: tuple[Fault, ...] = get_args(Fault)
            for ordered in faults:
                try:
                    (orders / ordered).unlink()
                except FileNotFoundError:
                    continue
                return ordered
        return self.faults.get(uid)


def read_script(file: Path | None) -> Script:
    """Read a script; no file is the empty script. Raises ConfigError for one that cannot be read."""
    if file is None:
        return Script()
    try:
        return Script(**orjson.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"script {file} cannot be read: {error}") from error


class ScriptedEngine:
    """Engine (see base.py) that plays a script; rows are played side by side, at most `max_num_seqs` at a time.

    It keeps no answers: a row is free for the next one when its answer has been taken.
    """

    name = "scripted"
    capabilities: tuple[str, ...] = ("logprobs",)

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._script = read_script(settings.script)
        self._rules: PromptRules | None = None
        self._failure: str | None = None
        self._rows = anyio.Semaphore(settings.limits.max_num_seqs)
        self._running = self._waiting = self._generated_tokens = self._loads = 0

    async def start(self) -> None:
        await anyio.sleep(self._script.start_s)
        self._rules = read_rules(self._settings.model, self._settings.limits)

    async def close(self) -> None:
        self._failure = self._failure or "the engine was closed"

    async def generate(self, requests: Sequence[EngineRequest]) -> AsyncGenerator[EngineResult, None]:
        if self._failure or self._rules is None:
            raise EngineFailed(self._failure or "the engine has not started")
        sender, receiver = anyio.create_memory_object_stream[EngineResult]()
        # Both ends outlive the tasks, so that a call that is closed early meets no broken stream.
        with sender, receiver:
            async with task_group() as tasks:
                for request in requests:
                    tasks.start_soon(self._play, request, self._rules, sender)
                for _ in requests:
                    yield await receiver.receive()

    def tensors(self) -> ModelTensors:
        file = Path(self._settings.model) / "model.safetensors"
        with safe_open(file, framework="np") as held:
            return ModelTensors({name: tuple(held.get_slice(name).get_shape()) for name in held.keys()})  # noqa: SIM118

    async def load_weights(self, source: WeightSource) -> None:
        self._loads += 1
        if self._loads <= self._script.fail_loads:
            raise WeightSyncFailed(f"loading {source.path} fails, says the script")

    def canary(self) -> EngineRequest:
        sampling = Sampling(max_new_tokens=1, stop_token_ids=())
        return EngineRequest(CANARY, (0,), (), sampling, return_logprobs=True)

    def health(self) -> ComponentHealth:
        if self._failure:
            return ComponentHealth(name="engine", live=False, ready=False, reason=self._failure)
        if self._rules is None:
            return ComponentHealth(name="engine", live=True, ready=False, reason="waiting, says the script")
        return ComponentHealth(name="engine", live=True, ready=True)

    def load(self) -> EngineLoad:
        return EngineLoad(self._running, self._waiting, self._generated_tokens)

    async def _play(
        self, request: EngineRequest, rules: PromptRules, sender: MemoryObjectSendStream[EngineResult]
    ) -> None:
        try:
            grids, num_prompt_tokens = _measured(request, rules)
        except Exception as error:
            await sender.send(failure_of(request, error))
            return
        self._waiting += 1
        try:
            await self._rows.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            await sender.send(await self._answer(request, grids, num_prompt_tokens))
        finally:
            self._running -= 1
            self._rows.release()

    async def _answer(self, request: EngineRequest, grids: tuple[Grid, ...], num_prompt_tokens: int) -> EngineResult:
        started = time.monotonic()
        await anyio.sleep(self._script.delays.get(request.uid, 0.0))
        fault = self._script.fault_of(request.uid, self._settings.port)
        if fault == "error":
            return EngineFailure(request.uid, "engine_error", "an error, says the script", retryable=True)
        if fault == "die":
            self._failure = "the engine died, says the script"
            raise EngineFailed(self._failure)
        if fault == "hang":
            await anyio.sleep_forever()
        if fault == "cut":
            raise ConnectionAbortedError("the stream is cut, says the script")
        first_token_at = time.monotonic() + self._script.seconds_per_token
        token_ids, reason = self._spoken(request)
        for _ in token_ids:
            await anyio.sleep(self._script.seconds_per_token)
            self._generated_tokens += 1
        is_broken = request.uid == CANARY and 0 < self._loads <= self._script.nan_loads
        logprob = float("nan") if fault == "nan" or is_broken else 0.0
        return EngineAnswer(
            uid=request.uid,
            token_ids=token_ids,
            finish_reason=reason,
            num_prompt_tokens=num_prompt_tokens,
            image_grid=grids,
            token_logprobs=(logprob,) * len(token_ids) if request.return_logprobs else None,
            started_at=started,
            first_token_at=first_token_at,
            finished_at=time.monotonic(),
        )

    def _spoken(self, request: EngineRequest) -> tuple[tuple[int, ...], FinishReason]:
        rule = StopRule(request.sampling, str)
        script = self._script.answers.get(request.uid, self._script.default)
        token_ids: list[int] = []
        while True:
            token_ids.append(script[len(token_ids) % len(script)])
            if reason := rule.after(token_ids):
                return tuple(token_ids), reason


def _measured(request: EngineRequest, rules: PromptRules) -> tuple[tuple[Grid, ...], int]:
    """Grids of the images and length of the expanded prompt; raises SampleRejected as a model's engine would."""
    rules.check_ids(request)
    images = [rules.open_image(data) for data in request.images]
    grids = tuple((1, image.height // rules.patch_size, image.width // rules.patch_size) for image in images)
    num_prompt_tokens = len(rules.expanded(request.prompt_token_ids, grids))
    rules.check_length(num_prompt_tokens, request.sampling.max_new_tokens)
    return grids, num_prompt_tokens

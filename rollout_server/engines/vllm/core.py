"""A started vLLM: decoding one request at a time of its caller's, all of them in one continuous batch."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import Any

import anyio
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase

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
from rollout_server.engines.prompt_rules import read_rules
from rollout_server.engines.vllm.prompt import PromptRenderer, RenderedPrompt
from rollout_server.engines.vllm.sampling import FINISH_REASONS, GrowingAnswer, sampling_params
from rollout_server.engines.vllm.start import start
from rollout_server.engines.vllm.tensors import checkpoint_tensors
from rollout_server.settings import ServerSettings
from shared.checkpoint_facts import checkpoint_folder
from shared.errors import EngineFailed, WeightSyncFailed
from shared.streams import task_group

WATCH_INTERVAL_S = 0.1


class TokenMeter(StatLoggerBase):  # type: ignore[misc]
    """All tokens generated so far, those of unfinished answers too, by the statistics that vLLM makes at each step."""

    def __init__(self, vllm_config: Any = None, engine_index: int = 0) -> None:
        self.generated_tokens = 0

    def record(self, scheduler_stats: Any, iteration_stats: Any, *others: Any, **more: Any) -> None:
        """Called by vLLM on the event loop, once a step."""
        if iteration_stats is not None:
            self.generated_tokens += iteration_stats.num_generation_tokens

    def log_engine_initialized(self) -> None:
        pass


class VllmCore:
    """vLLM's AsyncLLM with what is known of its checkpoint. Made on one thread, used on the event loop."""

    DIED = "vLLM's engine process has died"

    def __init__(self, settings: ServerSettings) -> None:
        """Start it, which takes seconds to minutes; raises ConfigError or EngineFailed."""
        self._folder = str(checkpoint_folder(settings.model))
        self.rules = read_rules(self._folder, settings.limits, settings.min_pixels)
        self._meter = TokenMeter()
        self._llm = start(settings, self._folder, self._meter)
        self._prompts = PromptRenderer(self._llm.renderer, self.rules)
        self._ids = count()
        self._max_rows = settings.limits.max_num_seqs
        self._num_open = self._num_submitted = self._num_loads = 0
        self._tensors = ModelTensors({})

    async def settle(self) -> None:
        """Tell the workers whose they are, and work out what a weight update holds."""
        async with self._while_alive():
            await self._llm.collective_rpc("end_with_server", args=(os.getpid(),))
        self._tensors = await anyio.to_thread.run_sync(checkpoint_tensors, self._folder)

    def close(self) -> None:
        self._llm.shutdown()

    @property
    def is_dead(self) -> bool:
        return bool(self._llm.errored)

    @property
    def tensors(self) -> ModelTensors:
        return self._tensors

    def load(self) -> EngineLoad:
        running = min(self._num_submitted, self._max_rows)
        return EngineLoad(running, self._num_open - running, self._meter.generated_tokens)

    async def answer(self, request: EngineRequest) -> EngineResult:
        """Decode one request; cancelling the call frees it in the engine. Raises EngineFailed when the engine dies."""
        self._num_open += 1
        try:
            prompt = await self._prompts.render(request, self._num_loads)
            self._num_submitted += 1
            try:
                return await self._decoded(request, prompt)
            finally:
                self._num_submitted -= 1
        except VLLMClientError as error:
            return EngineFailure(request.uid, "engine_error", f"vLLM refuses it: {error}")
        except EngineGenerateError as error:
            return EngineFailure(request.uid, "engine_error", f"vLLM failed: {error!r}", retryable=True)
        except EngineDeadError as error:
            raise EngineFailed(self.DIED) from error
        except Exception as error:
            return failure_of(request, error)
        finally:
            self._num_open -= 1

    async def load_weights(self, source: WeightSource) -> None:
        """Replace the weights that `source.path` names, and forget all that was computed with the old ones."""
        async with self._while_alive():
            failures = await self._llm.collective_rpc("load_weights_file", args=(str(source.path),))
            self._num_loads += 1
            await self._llm.reset_prefix_cache()
            await self._llm.reset_encoder_cache()
        if any(failures):
            raise WeightSyncFailed(f"loading failed: {next(filter(None, failures))}")

    @asynccontextmanager
    async def _while_alive(self) -> AsyncIterator[None]:
        """Raise EngineFailed from a body whose engine dies: vLLM leaves calls to a dead one unanswered."""
        async with task_group() as tasks:
            tasks.start_soon(self._raise_when_dead)
            try:
                yield
            except EngineDeadError as error:
                raise EngineFailed(self.DIED) from error
            tasks.cancel_scope.cancel()

    async def _raise_when_dead(self) -> None:
        while not self.is_dead:  # noqa: ASYNC110 - vLLM has no event for the death of its process
            await anyio.sleep(WATCH_INTERVAL_S)
        raise EngineFailed(self.DIED)

    async def _decoded(self, request: EngineRequest, prompt: RenderedPrompt) -> EngineResult:
        answer = GrowingAnswer(request, self._text_of)
        params = sampling_params(request)
        async with aclosing(self._llm.generate(prompt.inputs, params, str(next(self._ids)))) as outputs:
            async for output in outputs:
                if ending := answer.add(output.outputs[0]):
                    break
        reason = FINISH_REASONS.get(ending)
        if reason is None:
            return EngineFailure(request.uid, "engine_error", f"vLLM ended it by {ending!r}", retryable=True)
        return EngineAnswer(
            uid=request.uid,
            token_ids=tuple(answer.token_ids),
            finish_reason=reason,
            num_prompt_tokens=prompt.num_tokens,
            image_grid=prompt.image_grid,
            token_logprobs=answer.token_logprobs,
            stop_margins=answer.stop_margins,
            started_at=output.metrics.scheduled_ts,
            first_token_at=output.metrics.first_token_ts,
            finished_at=time.monotonic(),
        )

    def _text_of(self, token_id: int) -> str:
        return str(self._llm.renderer.tokenizer.decode([token_id], skip_special_tokens=False))

"""Running one server process: its token, its socket, its engine, and the way it ends."""

import argparse
import socket

import anyio
import uvicorn
from fastapi import FastAPI

from rollout_server.app import create_app
from rollout_server.engines.base import Engine
from rollout_server.engines.table import build_engine
from rollout_server.settings import ServerSettings, limits_for
from shared.access import check_token, read_token
from shared.checkpoint_facts import base_model
from shared.config.models import Config
from shared.errors import EngineFailed
from shared.streams import task_group
from shared.weights_root import weights_root

GRACE_S = 2
"""How long open streams may go on after a signal, or after the engine's death."""
WATCH_INTERVAL_S = 0.5


def settings_from(config: Config, options: argparse.Namespace) -> ServerSettings:
    """What `config` says of the server, with the command line's `options` over it.

    In place of adapters their base model is served; the learner's first publish brings the rest. Raises ConfigError for
    a backend that is not installed here and for a token that is needed and missing.
    """
    vllm = config.rollout.vllm
    host = options.host or vllm.server.host
    token = read_token(options.token_file or vllm.server.token_file)
    check_token(token, host)
    return ServerSettings(
        model=base_model(options.model or config.model.model),
        engine=options.engine or config.rollout.rollout_backend,
        limits=limits_for(config.max_model_len, vllm.max_num_seqs),
        host=host,
        port=options.port,
        dtype=config.model.dtype,
        attn_impl=config.model.attn_impl,
        tensor_parallel_size=vllm.tensor_parallel_size,
        gpu_memory_utilization=vllm.gpu_memory_utilization,
        enforce_eager=vllm.enforce_eager,
        min_pixels=config.template.min_pixels,
        max_pixels=config.template.max_pixels,
        token=token,
        weights_root=options.weights_root or weights_root(vllm.sync, config.training.output_dir),
        image_root=options.image_root or vllm.server.image_root,
        script=options.script,
        stall_timeout_s=vllm.server.stall_timeout_s,
    )


class _Server(uvicorn.Server):
    """uvicorn that cuts open streams when it is told to end, instead of waiting for them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for stream in list(self._app.state.streams.values()):
            stream.cut()
        await super().shutdown(sockets)


async def serve(settings: ServerSettings, listener: socket.socket) -> None:
    """Answer probes at once and rollouts when the engine has started, until a signal ends the process.

    Raises BoxloopError when the engine cannot start, EngineFailed when it has died.
    """
    engine = build_engine(settings)
    app = create_app(engine, settings)
    config = uvicorn.Config(
        app, lifespan="off", log_level="warning", timeout_graceful_shutdown=GRACE_S, timeout_keep_alive=75
    )
    server = _Server(config, app)
    try:
        async with task_group() as tasks:
            tasks.start_soon(_start, engine, app, settings.model)
            tasks.start_soon(_fail_with, engine)
            await server.serve(sockets=[listener])
            tasks.cancel_scope.cancel()
    finally:
        app.state.weights.close()
        await engine.close()


async def _start(engine: Engine, app: FastAPI, model: str) -> None:
    await engine.start()
    await app.state.weights.start()
    print(f"ready: {engine.name} engine with {model}", flush=True)


async def _fail_with(engine: Engine) -> None:
    """Raise EngineFailed when the engine is dead; before that, streams get their error lines and probes the reason."""
    while engine.health().live:  # noqa: ASYNC110 - an engine has no event for the death of another process
        await anyio.sleep(WATCH_INTERVAL_S)
    await anyio.sleep(GRACE_S)
    raise EngineFailed(engine.health().reason)

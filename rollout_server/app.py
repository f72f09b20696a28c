"""The HTTP application: routes, and which part answers each."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from rollout_server.admission import Activity, Admission
from rollout_server.batch_stream import BatchStream
from rollout_server.engines.base import Engine
from rollout_server.metrics import ServerCollector, server_registry
from rollout_server.openapi import openapi_document
from rollout_server.refusal import ManifestRefused, Refusal
from rollout_server.security import BearerGate, BodyLimit, refusal_response
from rollout_server.settings import ServerSettings
from rollout_server.stall_watch import StallWatch
from rollout_server.weights.service import WeightService
from shared.accounting import TimeAccount
from shared.checkpoint_facts import tokenizer_digest
from shared.errors import EngineFailed, WeightSyncFailed
from shared.probe import PUBLIC_PATHS, mount_probes, mount_unserved
from shared.weight_wire import (
    WeightCommit,
    WeightCommitted,
    WeightManifest,
    WeightPrepared,
    WeightRefused,
    WeightStatus,
)
from shared.wire import WIRE_VERSION, CancelReply, RolloutBatch, ServerInfo, WireModel

Body = TypeVar("Body", bound=WireModel)


def create_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """The server around `engine`, which the caller starts and closes, and then `app.state.weights`.

    Until both have started only probes answer.
    """
    account = TimeAccount(Activity)
    admission = Admission(settings.limits, account)
    weights = WeightService(engine, admission, settings.weights_root, settings.drain_timeout_s)
    app = FastAPI(title="Boxloop rollout server", openapi_url=None)
    app.state.weights = weights
    registry = server_registry(ServerCollector(engine, admission, weights, account))
    stall = StallWatch(
        engine,
        admission,
        lambda: sum(stream.num_unanswered for stream in app.state.streams.values()),
        settings.stall_timeout_s,
    )
    mount_probes(app, lambda: (engine.health(), weights.health(), stall.health()), registry)
    _mount_info(app, engine, settings, weights)
    _mount_rollouts(app, engine, settings, admission, weights)
    _mount_weights(app, engine, weights)
    _mount_document(app)
    _mount_errors(app)
    mount_unserved(app)
    app.add_middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes)
    app.add_middleware(BearerGate, token=settings.token, public_paths=PUBLIC_PATHS)
    return app


def _mount_info(app: FastAPI, engine: Engine, settings: ServerSettings, weights: WeightService) -> None:
    digest = tokenizer_digest(settings.model)
    updates = (*(f"transport:{name}" for name in weights.transports), *(f"mode:{name}" for name in weights.modes))

    @app.get("/info")
    async def info() -> ServerInfo:
        return ServerInfo(
            model=settings.model,
            tokenizer_digest=digest,
            engine=engine.name,
            limits=settings.limits,
            capabilities=engine.capabilities + updates,
            policy_version=weights.held,
        )


def _mount_rollouts(
    app: FastAPI, engine: Engine, settings: ServerSettings, admission: Admission, weights: WeightService
) -> None:
    streams: dict[str, BatchStream] = {}
    app.state.streams = streams

    @app.post("/rollouts")
    async def rollouts(request: Request) -> Response:
        batch = await _body(request, RolloutBatch)
        _check_batch(batch)
        _check_engine(engine)
        weights.check_servable(batch.policy_version)
        admission.admit(batch.batch_id, len(batch.uids))

        def end() -> None:
            del streams[batch.batch_id]
            admission.release(batch.batch_id)

        streams[batch.batch_id] = BatchStream(batch, weights.held, engine, settings, on_end=end)
        return streams[batch.batch_id]

    @app.delete("/rollouts/{batch_id}")
    async def cancel(batch_id: str) -> CancelReply:
        if batch_id not in streams:
            raise Refusal(404, "unknown_batch", f"no batch {batch_id!r} is open")
        return CancelReply(batch_id=batch_id, cancelled=streams[batch_id].cancel())


def _mount_weights(app: FastAPI, engine: Engine, weights: WeightService) -> None:
    @app.get("/weights")
    async def status() -> WeightStatus:
        return weights.status()

    @app.post("/weights/prepare")
    async def prepare(request: Request) -> WeightPrepared:
        manifest = await _body(request, WeightManifest)
        _check_engine(engine)
        return weights.prepare(manifest)

    @app.put("/weights/chunk")
    async def chunk(request: Request, offset: Annotated[int, Query(ge=0)]) -> WeightStatus:
        return await weights.receive(offset, _pieces(request))

    @app.post("/weights/commit")
    async def commit(request: Request) -> WeightCommitted:
        return await weights.commit(await _body(request, WeightCommit))

    @app.post("/weights/abort")
    async def abort(request: Request) -> WeightStatus:
        return weights.abort(await _body(request, WeightCommit))


def _mount_document(app: FastAPI) -> None:
    @app.get("/openapi.json", include_in_schema=False)
    async def document() -> dict[str, Any]:
        return openapi_document(app)


def _mount_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return refusal_response(error)

    @app.exception_handler(ManifestRefused)
    async def unfit(request: Request, error: ManifestRefused) -> Response:
        body = WeightRefused(mismatches=error.mismatches)
        return Response(body.model_dump_json(), status_code=422, media_type="application/json")

    @app.exception_handler(WeightSyncFailed)
    async def tainted(request: Request, error: WeightSyncFailed) -> Response:
        return refusal_response(Refusal(500, "load_failed", str(error), retry_after_s=0))

    @app.exception_handler(EngineFailed)
    async def dead(request: Request, error: EngineFailed) -> Response:
        return refusal_response(Refusal(503, "engine_failed", str(error)))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return refusal_response(Refusal(400, "bad_request", _problems(error)))


async def _body(request: Request, model: type[Body]) -> Body:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise Refusal(400, "bad_request", f"not a {model.__name__}: {_problems(error)}") from error


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes in. One that is cut is refused, though nobody is left to read that."""
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:
        raise Refusal(400, "bad_request", "the body was cut") from None


def _problems(error: ValidationError | RequestValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()[:8])


def _check_batch(batch: RolloutBatch) -> None:
    if batch.wire_version != WIRE_VERSION:
        raise Refusal(400, "wire_version", f"wire version {batch.wire_version}, this server speaks {WIRE_VERSION}")
    uids = batch.uids
    if len(set(uids)) != len(uids):
        twice = next(uid for uid in uids if uids.count(uid) > 1)
        raise Refusal(400, "duplicate_uid", f"uid {twice!r} stands twice in batch {batch.batch_id!r}")


def _check_engine(engine: Engine) -> None:
    health = engine.health()
    if not (health.live and health.ready):
        raise Refusal(503, "not_ready", f"the engine is not ready: {health.reason}", retry_after_s=1)

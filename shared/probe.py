"""The routes an orchestrator polls: /health/, /ready/ and /metrics."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from shared.health import live, ready
from shared.wire import ComponentHealth, ErrorBody, HealthReport

PUBLIC_PATHS = frozenset({"/health/", "/ready/", "/metrics"})
"""Answered without a token."""
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": HealthReport, "description": "Every component is well."},
    503: {"model": HealthReport, "description": "At least one is not, and says why."},
}


def mount_probes(
    app: FastAPI, components: Callable[[], Sequence[ComponentHealth]], registry: CollectorRegistry
) -> None:
    """Add the three routes to `app`. `components` is asked at each probe and must return at once."""

    @app.get("/health/", responses=ANSWERS)
    async def health() -> Response:
        return _answer(live(components()))

    @app.get("/ready/", responses=ANSWERS)
    async def readiness() -> Response:
        return _answer(ready(components()))

    @app.get("/metrics", response_class=PlainTextResponse, response_description="Prometheus text")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def mount_unserved(app: FastAPI) -> None:
    """Let `app` answer paths and methods that it does not serve with an ErrorBody."""

    @app.exception_handler(HTTPException)
    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unserved(request: Request, error: HTTPException) -> Response:
        body = ErrorBody(code="not_served", message=f"{request.method} {request.url.path}: {error.detail}")
        return Response(body.model_dump_json(), status_code=error.status_code, media_type="application/json")


def _answer(report: HealthReport) -> Response:
    return Response(report.model_dump_json(), status_code=200 if report.ok else 503, media_type="application/json")

"""The routes an orchestrator polls: /health/, /ready/ and /metrics."""

from collections.abc import Callable, Sequence

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from shared.health import live, ready
from shared.wire import ComponentHealth, HealthReport

PUBLIC_PATHS = frozenset({"/health/", "/ready/", "/metrics"})
"""Answered without a token."""


def mount_probes(
    app: FastAPI, components: Callable[[], Sequence[ComponentHealth]], registry: CollectorRegistry
) -> None:
    """Add the three routes to `app`. `components` is asked at each probe and must return at once."""

    @app.get("/health/")
    async def health() -> Response:
        return _answer(live(components()))

    @app.get("/ready/")
    async def readiness() -> Response:
        return _answer(ready(components()))

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _answer(report: HealthReport) -> Response:
    return Response(report.model_dump_json(), status_code=200 if report.ok else 503, media_type="application/json")

"""Both servers against their own descriptions: whatever a document allows is answered as it says."""

from contextlib import closing, suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from learner.plan.progress import Progress
from learner.reporting.metrics_server import MetricsServer, probed_app
from rollout_server.app import create_app
from rollout_server.engines.table import build_engine
from rollout_server.openapi import openapi_document
from shared.probe import PUBLIC_PATHS

HEADERS = {"Authorization": f"Bearer {'t' * 32}"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def test_every_route_of_the_rollout_server_is_described(scripted) -> None:
    app = create_app(build_engine(scripted()), scripted())
    described = described_by(openapi_document(app))
    served = {(method, route.path) for route in app.routes for method in route.methods}
    assert served - described == {("GET", "/openapi.json")}
    assert len(described) >= 11


def test_every_route_of_the_learner_is_described() -> None:
    with closing(MetricsServer(0)) as server:
        app = probed_app(server)
    served = {(method, route.path) for route in app.routes for method in route.methods}
    assert served - described_by(app.openapi()) == {("GET", "/openapi.json"), ("HEAD", "/openapi.json")}


def described_by(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_whatever_a_rollout_server_is_sent_is_answered_as_described(
    scripted, serving, tmp_path, mode: GenerationMode
) -> None:
    with serving(scripted({"default": [9, 7]}, token="t" * 32, weights_root=tmp_path)) as server:
        answered = answers_of(server.url, mode)
    if mode is GenerationMode.POSITIVE:
        assert {("POST", "/rollouts", 200), ("POST", "/weights/prepare", 422), ("GET", "/info", 200)} <= answered
    else:
        assert {("POST", "/rollouts", 400), ("POST", "/weights/prepare", 400)} <= answered


@pytest.mark.slow
def test_whatever_a_learner_is_sent_is_answered_as_described() -> None:
    with closing(MetricsServer(0)) as server:
        server.follow(Progress(num_steps=3))
        answered = answers_of(server.url.removesuffix("/metrics"), GenerationMode.POSITIVE)
    assert answered == {("GET", path, 200) for path in PUBLIC_PATHS}


def answers_of(url: str, mode: GenerationMode) -> set[tuple[str, str, int]]:
    """Send requests to every route that the document at `url` describes; method, path and status of the answers."""
    document = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=HEADERS)
    return set[tuple[str, str, int]]().union(
        *(statuses_of(operation.ok(), mode) for operation in document.get_all_operations())
    )


def statuses_of(operation: Any, mode: GenerationMode) -> set[tuple[str, str, int]]:
    """Send forty requests of one route and check each answer against the document."""
    seen: set[tuple[str, str, int]] = set()

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        response = case.call(headers=HEADERS, timeout=20)
        seen.add((case.method, case.path, response.status_code))
        case.validate_response(response, checks=CHECKS)

    with suppress(Unsatisfiable):  # a route without input has nothing wrong to send
        send()
    return seen

"""The server against its own description: whatever the document allows is answered as the document says."""

from contextlib import suppress
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

from rollout_server.app import create_app
from rollout_server.launch import build_engine
from rollout_server.openapi import openapi_document

HEADERS = {"Authorization": f"Bearer {'t' * 32}"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def test_every_route_is_described(scripted) -> None:
    app = create_app(build_engine(scripted()), scripted())
    described = {(method, path) for path, each in openapi_document(app)["paths"].items() for method in each}
    served = {(method.lower(), route.path) for route in app.routes for method in route.methods}
    assert served - described == {("get", "/openapi.json")}
    assert len(described) >= 11


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_whatever_is_sent_is_answered_as_described(scripted, serving, tmp_path, mode: GenerationMode) -> None:
    answered: set[tuple[str, str, int]] = set()
    with serving(scripted({"default": [9, 7]}, token="t" * 32, weights_root=tmp_path)) as server:
        document = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=HEADERS)
        for operation in document.get_all_operations():
            answered |= statuses_of(operation.ok(), mode)
    if mode is GenerationMode.POSITIVE:
        assert {("POST", "/rollouts", 200), ("POST", "/weights/prepare", 422), ("GET", "/info", 200)} <= answered
    else:
        assert {("POST", "/rollouts", 400), ("POST", "/weights/prepare", 400)} <= answered


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

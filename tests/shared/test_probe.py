from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Gauge

from shared.probe import PUBLIC_PATHS, mount_probes
from shared.wire import ComponentHealth, HealthReport


def probed(*components: ComponentHealth) -> TestClient:
    registry = CollectorRegistry()
    Gauge("boxloop_answer", "A number.", registry=registry).set(42)
    app = FastAPI(openapi_url=None)
    mount_probes(app, lambda: components, registry)
    return TestClient(app)


def test_a_loading_process_answers_200_to_health_and_503_with_the_reason_to_ready() -> None:
    client = probed(ComponentHealth(name="engine", live=True, ready=False, reason="loading"))
    assert client.get("/health/").status_code == 200
    refused = client.get("/ready/")
    assert refused.status_code == 503
    assert HealthReport.model_validate_json(refused.content).components[0].reason == "loading"


def test_a_failed_process_answers_503_to_both() -> None:
    client = probed(ComponentHealth(name="engine", live=False, ready=False, reason="died"))
    assert [client.get(path).status_code for path in ("/health/", "/ready/")] == [503, 503]


def test_metrics_are_prometheus_text() -> None:
    assert "boxloop_answer 42.0" in probed().get("/metrics").text


def test_every_probe_is_public() -> None:
    assert {route.path for route in probed().app.routes} == PUBLIC_PATHS

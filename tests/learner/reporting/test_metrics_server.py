"""What the learner answers to those who poll it."""

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from learner.build import open_run
from learner.plan.progress import Progress
from learner.reporting.metrics_server import MetricsServer, probed_app
from learner.training.lane import ComputeLane
from shared.errors import ConfigError
from shared.probe import PUBLIC_PATHS
from shared.wire import ErrorBody, HealthReport


def scraped(server: MetricsServer) -> dict[str, float]:
    text = httpx.get(server.url, trust_env=False).text
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_what_is_logged_stands_under_its_name_until_it_is_logged_anew() -> None:
    server = MetricsServer(0)
    assert scraped(server) == {"boxloop_learner_step": 0}
    server.write(1, {"loss": 2.0, "rollout/parse_dropped_bad_json": 3.0})
    server.write(2, {"loss": 1.5, "share/learner_computing": 0.25})
    assert scraped(server) == {
        "boxloop_learner_step": 2,
        "loss": 1.5,
        "rollout_parse_dropped_bad_json": 3,
        "share_learner_computing": 0.25,
    }
    server.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with closing(MetricsServer(0)) as server:
        yield server


def test_a_port_that_is_taken_is_named(server: MetricsServer) -> None:
    port = httpx.URL(server.url).port
    with pytest.raises(ConfigError, match=rf"training.metrics_port: .*127.0.0.1:{port}.*another port, or 0 for any"):
        MetricsServer(port)


def test_it_listens_on_the_loopback_address_and_can_be_closed_twice(server: MetricsServer) -> None:
    assert httpx.URL(server.url).host == "127.0.0.1"
    server.close()
    server.close()
    with closing(MetricsServer(httpx.URL(server.url).port)) as next_one:
        assert next_one.url == server.url


def test_a_learner_is_live_from_the_start_and_ready_when_it_trains(server: MetricsServer) -> None:
    with httpx.Client(base_url=server.url.removesuffix("/metrics"), trust_env=False) as client:
        assert client.get("/health/").status_code == 200
        loading = client.get("/ready/")
        progress = Progress(num_steps=75)
        server.follow(progress)
        progress.step = 12
        training = client.get("/ready/")
    assert loading.status_code == 503
    assert "loading" in HealthReport.model_validate_json(loading.content).components[0].reason
    assert training.status_code == 200
    assert "step 12 of 75" in HealthReport.model_validate_json(training.content).components[0].reason


def test_every_route_is_public_on_purpose_and_nothing_else_is_served(server: MetricsServer) -> None:
    routes = {(method, route.path) for route in probed_app(server).routes for method in route.methods}
    assert {path for _, path in routes} == PUBLIC_PATHS | {"/openapi.json"}
    assert {method for method, _ in routes} == {"GET", "HEAD"}, "nothing can be changed"
    with httpx.Client(base_url=server.url.removesuffix("/metrics"), trust_env=False) as client:
        refused = [client.get("/"), client.get("/metrics/x"), client.post("/metrics"), client.get("/docs")]
    assert [response.status_code for response in refused] == [404, 404, 405, 404]
    assert {ErrorBody.model_validate_json(response.content).code for response in refused} == {"not_served"}


async def test_scrapes_are_answered_while_the_compute_lane_is_busy(server: MetricsServer) -> None:
    """The lane works in Python the whole time, and the event loop is held by the scrape."""
    scraped_one = threading.Event()

    def work() -> int:
        num_rounds = 0
        while not scraped_one.is_set():
            num_rounds += sum(range(1000)) > 0
        return num_rounds

    with ComputeLane() as lane:
        busy = asyncio.ensure_future(lane(work))
        await asyncio.sleep(0)
        try:
            assert scraped(server) == {"boxloop_learner_step": 0}
        finally:
            scraped_one.set()
        assert await busy > 0


async def test_the_port_is_taken_before_anything_is_loaded(server: MetricsServer, config_of, tmp_path: Path) -> None:
    port = httpx.URL(server.url).port
    config = config_of(f"training.metrics_port={port}", f"model.model={tmp_path / 'no-such-model'}")
    with pytest.raises(ConfigError, match=r"training\.metrics_port"):
        async with open_run(config, Console(file=io.StringIO()), tmp_path):
            pass

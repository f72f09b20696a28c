from contextlib import closing

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from learner.reporting.metrics_server import MetricsServer
from shared.errors import ConfigError


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


def test_a_port_that_is_taken_is_named() -> None:
    with closing(MetricsServer(0)) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        with pytest.raises(ConfigError, match=rf"training.metrics_port: 127.0.0.1:{port} cannot be used"):
            MetricsServer(port)

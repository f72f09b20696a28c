"""The container files agree with the code: names, ports, paths and metrics. Building them is docs/containers.md."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from shared.config.load import load_config
from shared.metrics import METRICS

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "compose/docker"
COMPOSE = yaml.safe_load((DOCKER / "docker-compose.yaml").read_text())
OURS = ("rollout-server", "learner")
FUNCTIONS = {"rate"}


def test_the_dashboard_draws_only_metrics_of_the_catalogue() -> None:
    known = {metric.prometheus_name for metric in METRICS.values()}
    dashboard = json.loads((DOCKER / "grafana/dashboards/boxloop.json").read_text())
    drawn = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"[a-z]\w{3,}(?![\w\]])", target["expr"])
    } - FUNCTIONS
    assert len(drawn) > 20
    assert drawn <= known


@pytest.mark.parametrize("service", OURS)
def test_our_containers_run_as_nobody_special(service: str) -> None:
    settings = COMPOSE["services"][service]
    assert settings["user"].startswith("${BOXLOOP_UID")
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["secrets"] == ["boxloop_token"]
    assert "privileged" not in settings


def test_no_container_listens_beyond_loopback() -> None:
    assert all(service["network_mode"] == "host" for service in COMPOSE["services"].values())
    assert "--web.listen-address=127.0.0.1:9090" in COMPOSE["services"]["prometheus"]["command"]
    assert COMPOSE["services"]["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert load_config(ROOT / "configs/containers/ab_mixed.yaml").rollout.vllm.server.host == "127.0.0.1"


def test_the_learner_waits_until_the_server_is_ready() -> None:
    assert COMPOSE["services"]["learner"]["depends_on"] == {"rollout-server": {"condition": "service_healthy"}}
    assert "/ready/" in COMPOSE["services"]["rollout-server"]["healthcheck"]["test"][-1]


def test_the_config_names_what_compose_mounts() -> None:
    config = load_config(ROOT / "configs/containers/ab_mixed.yaml")
    mounted = set(re.findall(r":(/work/\w+)", " ".join(COMPOSE["services"]["learner"]["volumes"])))
    for path in (config.custom.train_jsonl, config.training.output_dir, config.rollout.vllm.sync.weights_root):
        assert any(Path(path).is_relative_to(mount) for mount in mounted), (path, mounted)
    assert config.rollout.vllm.server.token_file == Path("/run/secrets/boxloop_token")


def test_prometheus_scrapes_the_ports_that_the_config_opens() -> None:
    config = load_config(ROOT / "configs/containers/ab_mixed.yaml")
    scraped = {
        job["job_name"]: job["static_configs"][0]["targets"][0]
        for job in yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    }
    assert scraped["learner"] == f"127.0.0.1:{config.training.metrics_port}"
    assert f"http://{scraped['rollout-server']}" == config.rollout.vllm.server.servers[0].base_url


def test_every_dependency_of_the_images_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0] for line in (DOCKER / "constraints.txt").read_text().splitlines() if "==" in line}
    needed = {re.split(r"[<>=\[]", dependency)[0] for dependency in project["dependencies"]}
    assert needed <= pinned

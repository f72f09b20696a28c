"""The container files agree with the code: names, ports, paths and metrics. Building them is docs/containers.md."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compose import cli
from compose.announcement import announced
from compose.launch_plan import Launch, LaunchPlan, plan_launch
from shared.config.load import load_config
from shared.metrics import METRICS

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "compose/docker"
COMPOSE = yaml.safe_load((DOCKER / "docker-compose.yaml").read_text())
OURS = ("rollout-server", "learner")
IMAGE_EXTRAS = ("vllm", "tracking")
SERVERS = "custom.extra.rollout_matching.vllm.server.servers"
CONFIGS = sorted(path for path in (ROOT / "configs/containers").glob("*.yaml") if path.name != "base.yaml")
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
    assert not any("ports" in service for service in COMPOSE["services"].values())
    assert "--web.listen-address=127.0.0.1:9090" in COMPOSE["services"]["prometheus"]["command"]
    assert COMPOSE["services"]["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert all(load_config(path).rollout.vllm.server.host == "127.0.0.1" for path in CONFIGS)


def test_the_learner_waits_until_the_server_is_ready() -> None:
    assert COMPOSE["services"]["learner"]["depends_on"] == {"rollout-server": {"condition": "service_healthy"}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_name_what_compose_mounts(path: Path) -> None:
    config = load_config(path)
    mounted = set(re.findall(r":(/boxloop/\w+)", " ".join(COMPOSE["services"]["learner"]["volumes"])))
    for used in (config.custom.train_jsonl, config.training.output_dir, config.rollout.vllm.sync.weights_root):
        assert any(Path(used).is_relative_to(mount) for mount in mounted), (used, mounted)
    assert config.rollout.vllm.server.token_file == Path("/run/secrets/boxloop_token")


def example_env() -> dict[str, str]:
    """What `.env` holds once env.example is copied."""
    lines = (DOCKER / "env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def expanded(argument: str, env: dict[str, str]) -> str:
    """`argument` as compose passes it on: `${NAME:-default}` and `${NAME:?message}` replaced."""
    return re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda found: env.get(found[1]) or found[2] or "", argument)


def planned_in_the_container(env: dict[str, str], monkeypatch: pytest.MonkeyPatch, *more: str) -> LaunchPlan:
    """What the rollout-server service plans to start with `env`, by its own command line. Its port is any free one."""
    launches: list[Launch] = []
    monkeypatch.setattr(cli, "run_supervised", lambda launch, work: launches.append(launch) or 0)
    env = env | {"CONFIG": str(ROOT / env["CONFIG"]), "SERVER_PORT": "0"}
    command = [expanded(argument, env) for argument in COMPOSE["services"]["rollout-server"]["command"]]
    cli.app([*command, *more], standalone_mode=False)
    return plan_launch(launches[0], None)


@pytest.mark.parametrize(
    ("gpus", "tensor_parallel", "num_servers"),
    [("0,1,2", 1, 3), ("0,1,2,3,4,5,6", 1, 7), ("0,1,2,3", 2, 2), ("0", 1, 1), ("", 1, 1)],
)
def test_the_server_container_runs_as_many_servers_as_it_is_given_gpus(
    gpus: str, tensor_parallel: int, num_servers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tp = f"custom.extra.rollout_matching.vllm.tensor_parallel_size={tensor_parallel}"
    plan = planned_in_the_container(example_env() | {"SERVER_GPUS": gpus}, monkeypatch, tp)
    assert len(plan.servers) == num_servers
    seen = [server.process.environment["CUDA_VISIBLE_DEVICES"] for server in plan.servers]
    assert ",".join(seen) == gpus


def test_the_example_environment_starts_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    env = example_env()
    plan = planned_in_the_container(env, monkeypatch)
    assert len(plan.servers) == len(env["SERVER_GPUS"].split(","))
    assert env["TRAIN_GPUS"] not in env["SERVER_GPUS"].split(",")
    needed = set(re.findall(r"\$\{(\w+):\?", (DOCKER / "docker-compose.yaml").read_text()))
    assert needed <= env.keys()


def test_servers_are_announced_where_compose_and_prometheus_look(tmp_path: Path) -> None:
    output_dir = load_config(CONFIGS[0]).training.output_dir
    jobs = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    scraped = {job["job_name"]: job for job in jobs}
    with announced(["http://127.0.0.1:8000", "http://127.0.0.1:8001"], tmp_path):
        (file,) = tmp_path.iterdir()
        assert json.loads(file.read_text()) == [{"targets": ["127.0.0.1:8000", "127.0.0.1:8001"]}]
    assert not file.exists()
    assert scraped["rollout-server"]["file_sd_configs"][0]["files"] == [str(output_dir / file.name)]
    assert str(output_dir / file.name) in COMPOSE["services"]["rollout-server"]["healthcheck"]["test"][-1]
    mounts = COMPOSE["services"]["prometheus"]["volumes"]
    assert any(mount.endswith(f":{output_dir}:ro") for mount in mounts)


@pytest.mark.parametrize(("second", "healthy"), [(200, True), (503, False)])
def test_the_server_container_is_healthy_when_every_server_is_ready(second: int, healthy: bool, tmp_path: Path) -> None:
    *_, script = COMPOSE["services"]["rollout-server"]["healthcheck"]["test"]
    with ExitStack() as stack:
        addresses = [stack.enter_context(answering(status)) for status in (200, second)]
        stack.enter_context(announced(addresses, tmp_path))
        here = script.replace("/boxloop/run", str(tmp_path))
        done = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True)
    assert (done.returncode == 0) is healthy, done.stderr


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server whose `/ready/` answers with `status`; its address."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready/" else 404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_learner_takes_the_servers_that_were_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, argv: started.append(argv))
    written = f"{SERVERS}=[{{base_url: http://127.0.0.1:7000}}]"
    command = ["train", "--config", str(CONFIGS[0]), f"training.output_dir={tmp_path}"]
    with announced(["http://127.0.0.1:8000", "http://127.0.0.1:8001"], tmp_path):
        cli.app(command, standalone_mode=False)
        cli.app([*command, written], standalone_mode=False)
    cli.app(command, standalone_mode=False)
    seen = [load_config(CONFIGS[0], argv[argv.index("--config") + 2 :]).rollout.vllm.server.servers for argv in started]
    assert [[server.base_url for server in servers] for servers in seen] == [
        ["http://127.0.0.1:8000", "http://127.0.0.1:8001"],
        ["http://127.0.0.1:7000"],  # what the config names goes first
        [],
    ]


def test_prometheus_and_the_health_check_ask_the_port_of_the_learners_metrics() -> None:
    jobs = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    (targets,) = [job["static_configs"][0]["targets"] for job in jobs if job["job_name"] == "learner"]
    for path in CONFIGS:
        assert targets == [f"127.0.0.1:{load_config(path).training.metrics_port}"]
    assert f"http://{targets[0]}/metrics" in COMPOSE["services"]["learner"]["healthcheck"]["test"][-1]


def test_everything_the_images_install_is_pinned() -> None:
    """Down to what needs what, as far as it is installed here: a CPU has no CUDA wheels."""
    lines = (DOCKER / "constraints.txt").read_text().splitlines()
    pinned = {Requirement(line).name: Requirement(line).specifier for line in lines if not line.startswith("#")}
    assert all(len(each) == 1 and str(each).startswith("==") for each in pinned.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in IMAGE_EXTRAS)]
    waiting = [Requirement(text) for group in groups for text in group]
    seen: set[tuple[str, str]] = set()
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        assert name in pinned, need
        version = str(pinned[name]).removeprefix("==")
        assert need.specifier.contains(version, prereleases=True), (need, version)
        for extra in need.extras | {""}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += required_by(name, extra)
    assert len(seen) > 40


def required_by(name: str, extra: str) -> list[Requirement]:
    """What the installed package needs on this machine for `extra`; nothing for one that is not installed."""
    try:
        needs = [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:
        return []
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]

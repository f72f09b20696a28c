"""What the learner tells those who poll it: /health/, /ready/ and /metrics."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from learner.plan.progress import Progress
from shared.errors import BoxloopError, ConfigError
from shared.listening import bound_socket
from shared.metrics import metric_named
from shared.probe import mount_probes, mount_unserved
from shared.wire import WIRE_VERSION, ComponentHealth

HOST = "127.0.0.1"
GRACE_S = 1


class MetricsServer(Collector):
    """A tracker that answers scrapers, on the loopback address only and from a thread of its own.

    So it answers while the model is loaded and while the compute lane is busy. Names are those of `logging.jsonl` with
    `_` for `/`. A value stays until it is logged anew, so that B steps are seen during A steps too.
    """

    def __init__(self, port: int) -> None:
        """Answer from now on; `port` 0 = any free one. Raises ConfigError when it is taken."""
        self._step, self._values = 0, dict[str, float]()
        self._progress: Progress | None = None
        self._logged_at = time.monotonic()
        self._listener = metrics_socket(port)
        self._listener.listen()  # from here on a request waits for the thread instead of being refused
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}/metrics"
        self._server = uvicorn.Server(
            uvicorn.Config(probed_app(self), lifespan="off", log_level="warning", timeout_graceful_shutdown=GRACE_S)
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="metrics", daemon=True)
        self._thread.start()

    def follow(self, progress: Progress) -> None:
        """All parts are there: say ready, and how far `progress` is."""
        self._progress = progress
        self._logged_at = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of a record of `logging.jsonl`."""
        self._step, self._values = step, {**self._values, **metrics}  # replaced whole: another thread reads it
        self._logged_at = time.monotonic()

    def close(self) -> None:
        """Stop serving. May be called again."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    def component(self) -> ComponentHealth:
        """Live as long as the process; ready once it trains."""
        silent_s = time.monotonic() - self._logged_at
        if self._progress is None:
            return ComponentHealth(name="training", live=True, ready=False, reason=f"loading for {silent_s:.0f} s")
        reason = f"step {self._progress.step} of {self._progress.num_steps}, last record {silent_s:.0f} s ago"
        return ComponentHealth(name="training", live=True, ready=True, reason=reason)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("boxloop_learner_step", "Optimizer steps that are done.", self._step)
        for name, value in self._values.items():
            metric = metric_named(name)
            text = metric.numerator + (f" / {metric.denominator}" if metric.denominator else "")
            yield GaugeMetricFamily(name.replace("/", "_"), f"{text} [{metric.unit}]", value)


def metrics_socket(port: int) -> socket.socket:
    """A socket for a MetricsServer, `port` 0 = any free one. Raises ConfigError when the port is taken."""
    try:
        return bound_socket(HOST, port)
    except BoxloopError as error:
        raise ConfigError(f"training.metrics_port: {error}, or 0 for any") from error


def probed_app(learner: MetricsServer) -> FastAPI:
    """The learner's routes: the probes, and /openapi.json, which describes them."""
    registry = CollectorRegistry()
    registry.register(learner)
    app = FastAPI(title="Boxloop learner", version=str(WIRE_VERSION), docs_url=None, redoc_url=None)
    mount_probes(app, lambda: (learner.component(),), registry)
    mount_unserved(app)
    return app

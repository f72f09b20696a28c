"""The learner's /metrics: the newest logged value of every metric."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.errors import ConfigError
from shared.metrics import metric_named

HOST = "127.0.0.1"


class MetricsServer(Collector):
    """A tracker that answers scrapers, on the loopback address only and from a thread of its own.

    Names are those of `logging.jsonl` with `_` for `/`. A value stays until it is logged anew, so that B steps are seen
    during A steps too.
    """

    def __init__(self, port: int) -> None:
        """`port` 0 = any free one. Raises ConfigError when it is taken."""
        registry = CollectorRegistry()
        registry.register(self)
        self._step, self._values = 0, dict[str, float]()
        try:
            self._server, self._thread = start_http_server(port, HOST, registry)
        except OSError as error:
            raise ConfigError(
                f"training.metrics_port: {HOST}:{port} cannot be used ({error.strerror}); set another, or 0 for any"
            ) from error
        self.url = f"http://{HOST}:{self._server.server_port}/metrics"

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of a record of `logging.jsonl`."""
        self._step, self._values = step, {**self._values, **metrics}  # replaced whole: another thread reads it

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("boxloop_learner_step", "Optimizer steps that are done.", self._step)
        for name, value in self._values.items():
            metric = metric_named(name)
            text = metric.numerator + (f" / {metric.denominator}" if metric.denominator else "")
            yield GaugeMetricFamily(name.replace("/", "_"), f"{text} [{metric.unit}]", value)

"""The server's own numbers for /metrics, read from the live parts when asked."""

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rollout_server.admission import Activity, Admission
from rollout_server.engines.base import Engine
from rollout_server.weights.service import WeightService
from shared.accounting import TimeAccount


class ServerCollector(Collector):
    """Seconds by activity, work at hand, tokens so far and the policy's step (-1 before the first update)."""

    def __init__(
        self, engine: Engine, admission: Admission, weights: WeightService, account: TimeAccount[Activity]
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._weights = weights
        self._account = account

    def collect(self) -> Iterator[Metric]:
        seconds = CounterMetricFamily("boxloop_server_seconds", "Seconds by activity.", labels=["activity"])
        for activity, value in self._account.seconds().items():
            seconds.add_metric([activity.value], value)
        yield seconds
        load = self._engine.load()
        yield CounterMetricFamily("boxloop_server_generated_tokens", "Tokens decoded.", load.generated_tokens)
        yield GaugeMetricFamily("boxloop_server_running", "Samples being decoded.", load.running)
        yield GaugeMetricFamily("boxloop_server_waiting", "Samples waiting for a free row.", load.waiting)
        yield GaugeMetricFamily("boxloop_server_open_samples", "Samples of open batches.", self._admission.open_samples)
        step = self._weights.held.step if self._weights.held else -1
        yield GaugeMetricFamily("boxloop_server_policy_step", "Optimizer updates the weights have seen.", step)


class LibraryCollector(Collector):
    """What libraries, vLLM above all, count in the registry that is theirs by default."""

    def collect(self) -> Iterator[Metric]:
        yield from REGISTRY.collect()


def server_registry(collector: ServerCollector) -> CollectorRegistry:
    """The server's own numbers and its libraries'; a registry of its own, so that tests run several servers."""
    registry = CollectorRegistry()
    registry.register(collector)
    registry.register(LibraryCollector())
    return registry

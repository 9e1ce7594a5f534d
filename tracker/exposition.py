"""What Prometheus is told: the loop says how it stands, a thread of prometheus-client's serves the last word.

Rule 1: the loop waits for nobody: it leaves finished families here, once a second, and the thread reads only
these. Rule 2: an idle or hanging loop is seen: `porthold_told_timestamp_seconds` says when it last spoke.
Rule 3: names end in their units, labels have few values: no address, no port, no key becomes one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tracker.instant import Instant

_TELL_NS: Final = 1_000_000_000
_APPEND_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class MetricsUnusable(Exception):
    """Nothing can listen there."""


class Exposition(Collector):
    """One process's metrics; `served` makes it reachable, else everything here costs next to nothing."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._families: tuple[Metric, ...] = ()
        self._due_ns = 0
        self._served = False

    @contextmanager
    def served(self, listen: str | None) -> Iterator[None]:
        """While the block runs, at http://`listen`/metrics; None: nowhere. MetricsUnusable."""
        if listen is None:
            yield
            return
        address, _, port = listen.rpartition(":")
        try:
            server, thread = start_http_server(int(port), address, self.registry)
        except OSError as error:
            raise MetricsUnusable(
                f"metrics: nothing can listen at {listen}: {error.strerror}; is the other daemon's the same?"
            ) from error
        self._served = True
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        try:
            yield
        finally:
            self._served = False
            server.shutdown()
            server.server_close()
            thread.join()

    def tell(self, now: Instant, families: Callable[[], Iterable[Metric]]) -> None:
        """How it stands, at most once a second; `families` is asked only if somebody may listen."""
        if self._served and now.monotonic_ns >= self._due_ns:
            self._due_ns = now.monotonic_ns + _TELL_NS
            told = gauge(
                "porthold_told_timestamp_seconds", "When the loop last told all this.", now.wall_ns / 1e9
            )
            self._families = (told, *families())

    def collect(self) -> Iterable[Metric]:
        return self._families

    def append_seconds(self) -> Histogram:
        """How long appends take, fsync included."""
        return Histogram(
            "porthold_tracker_append_seconds",
            "How long an append to the log took, fsync included.",
            buckets=_APPEND_BUCKETS_S,
            registry=self.registry,
        )

    def append_records(self) -> Histogram:
        """How many records share an append."""
        return Histogram(
            "porthold_tracker_append_records",
            "How many records were appended in one transaction.",
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family

"""Prometheus: what the integrations do, as metrics.

    from discovery.integrations import prometheus

    prometheus.install()

    discovery_attempt_seconds{service,library,outcome}  until an answer began ("ok"), or the failure
    discovery_retries_total{service,library}            attempts that were not the first of their request
    discovery_instances{service}                        healthy instances now
    discovery_stale{service}                            1 while the registry cannot be asked

Law: no label tells instances apart. They come and go, and a series for each would stay for ever.
"""

from __future__ import annotations

from collections.abc import Callable

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as _exc:
    raise ImportError(
        "discovery.integrations.prometheus needs prometheus-client: pip install 'portcall[prometheus]'"
    ) from _exc

from discovery.model import Snapshot
from discovery.observe import Attempt, observe

__all__ = ["install"]


def install(registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Collect metrics in *registry* from now on; returns the function that ends it and unregisters them."""
    metrics = _Metrics(registry)
    end = observe(metrics)

    def uninstall() -> None:
        end()
        for collector in metrics.collectors:
            registry.unregister(collector)

    return uninstall


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "discovery_attempt_seconds",
            "Time until an instance began to answer a request, or failed to.",
            ["service", "library", "outcome"],
            registry=registry,
        )
        self._retries = Counter(
            "discovery_retries",
            "Attempts that were not the first of their request.",
            ["service", "library"],
            registry=registry,
        )
        self._instances = Gauge(
            "discovery_instances", "Healthy instances of a service.", ["service"], registry=registry
        )
        self._stale = Gauge(
            "discovery_stale", "1 while the registry cannot be asked.", ["service"], registry=registry
        )
        self.collectors = (self._seconds, self._retries, self._instances, self._stale)

    def attempted(self, attempt: Attempt) -> None:
        outcome = "ok" if attempt.error is None else "failed"
        self._seconds.labels(attempt.service, attempt.library, outcome).observe(attempt.seconds)
        if attempt.number > 1:
            self._retries.labels(attempt.service, attempt.library).inc()

    def changed(self, snapshot: Snapshot) -> None:
        self._instances.labels(snapshot.service).set(len(snapshot))
        self._stale.labels(snapshot.service).set(snapshot.stale)

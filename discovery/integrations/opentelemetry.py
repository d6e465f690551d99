"""OpenTelemetry: what the integrations do, as metrics and on the current span.

    from discovery.integrations import opentelemetry

    opentelemetry.install()

    discovery.attempt.duration    histogram, seconds, by service, library and error.type
    discovery.instances           gauge, healthy instances by service
    span event discovery.attempt  on the span of the request: which instance, which attempt, the error

Attribute names are those of OpenTelemetry's semantic conventions where there is one.
"""

from __future__ import annotations

from collections.abc import Callable

try:
    from opentelemetry import metrics, trace
except ImportError as _exc:
    raise ImportError(
        "discovery.integrations.opentelemetry needs opentelemetry-api: pip install 'portcall[opentelemetry]'"
    ) from _exc

from discovery.model import Snapshot
from discovery.observe import Attempt, observe

__all__ = ["install"]


def install(meter_provider: metrics.MeterProvider | None = None) -> Callable[[], None]:
    """Record from now on, with the global meter provider by default; returns the function that ends it."""
    return observe(_Telemetry(metrics.get_meter("portcall", meter_provider=meter_provider)))


class _Telemetry:
    def __init__(self, meter: metrics.Meter) -> None:
        self._seconds = meter.create_histogram(
            "discovery.attempt.duration",
            unit="s",
            description="Time until an instance began to answer a request, or failed to.",
        )
        self._instances = meter.create_gauge(
            "discovery.instances", unit="{instance}", description="Healthy instances of a service."
        )

    def attempted(self, attempt: Attempt) -> None:
        attributes: dict[str, str | int] = {
            "discovery.service": attempt.service,
            "discovery.library": attempt.library,
        }
        if attempt.error is not None:
            attributes["error.type"] = type(attempt.error).__qualname__
        self._seconds.record(attempt.seconds, dict(attributes))
        # On the span alone: as a metric's attributes instances would make a series each.
        instance = attempt.instance
        where: dict[str, str | int] = {
            "network.peer.address": instance.host,
            "network.peer.port": instance.port,
        }
        trace.get_current_span().add_event(
            "discovery.attempt", {**attributes, **where, "discovery.attempt.number": attempt.number}
        )

    def changed(self, snapshot: Snapshot) -> None:
        self._instances.set(len(snapshot), {"discovery.service": snapshot.service})

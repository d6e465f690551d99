"""What the registrar counts, as Prometheus reads it.

Laws:
- May be used from any thread; counting is one addition under a lock.
- Nothing is labelled by what containers choose (names, ids): their number would be the number of series.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["Metrics"]

LAG_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # s
_PREFIX: Final = "portcall_registrar_"
_COUNTERS: Final = {
    "events_total": "Docker events that were heard, by action",
    "passes_total": "looks at one container",
    "surveys_total": "looks at everything",
    "writes_total": "writes to the agent, by kind",
    "drift_total": "writes without an event: what a survey found to differ",
    "refused_total": "writes that the registry refused",
    "errors_total": "passes and surveys that failed, by the side that was at fault",
}


class Metrics:
    """See the module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._buckets = [0] * (len(LAG_BUCKETS) + 1)
        self._lag_sum = 0.0

    def count(self, name: str, label: str = "") -> None:
        """Add one to a counter: *name* without prefix, *label* as ``action="start"``."""
        with self._lock:
            self._counts[name, label] += 1

    def lag(self, seconds: float) -> None:
        """Note the time from an event to the end of the write that it led to."""
        with self._lock:
            self._buckets[bisect_left(LAG_BUCKETS, seconds)] += 1
            self._lag_sum += seconds

    def value(self, name: str, label: str = "") -> int:
        with self._lock:
            return self._counts[name, label]

    def render(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return everything in Prometheus' text format, version 0.0.4.

        Args:
            gauges: name -> (help, value).
        """
        with self._lock:
            counts, buckets, lag_sum = dict(self._counts), list(self._buckets), self._lag_sum
        return "\n".join(_lines(counts, buckets, lag_sum, gauges)) + "\n"


def _lines(
    counts: Mapping[tuple[str, str], int],
    buckets: list[int],
    lag_sum: float,
    gauges: Mapping[str, tuple[str, float]],
) -> Iterator[str]:
    for name, text in _COUNTERS.items():
        yield from _head(name, text, "counter")
        rows = sorted((label, count) for (counted, label), count in counts.items() if counted == name)
        for label, count in rows or [("", 0)]:
            yield f"{_PREFIX}{name}{f'{{{label}}}' if label else ''} {count}"
    name = "lag_seconds"
    yield from _head(name, "time from a Docker event to the end of the write it led to", "histogram")
    total = 0
    for bound, count in zip((*LAG_BUCKETS, "+Inf"), buckets, strict=True):
        total += count
        yield f'{_PREFIX}{name}_bucket{{le="{bound}"}} {total}'
    yield f"{_PREFIX}{name}_sum {lag_sum:.6f}"
    yield f"{_PREFIX}{name}_count {total}"
    for name, (text, value) in gauges.items():
        yield from _head(name, text, "gauge")
        yield f"{_PREFIX}{name} {value:.10g}"


def _head(name: str, text: str, kind: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {text}"
    yield f"# TYPE {_PREFIX}{name} {kind}"

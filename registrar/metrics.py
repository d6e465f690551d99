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

from discovery.exposition import Labels, Sample, counter, gauge, histogram, render

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
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._buckets = [0] * (len(LAG_BUCKETS) + 1)
        self._lag_sum = 0.0

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter: *name* without prefix."""
        with self._lock:
            self._counts[name, tuple(labels.items())] += 1

    def lag(self, seconds: float) -> None:
        """Note the time from an event to the end of the write that it led to."""
        with self._lock:
            self._buckets[bisect_left(LAG_BUCKETS, seconds)] += 1
            self._lag_sum += seconds

    def render(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return everything in Prometheus' text format.

        Args:
            gauges: name -> (help, value).
        """
        return render(self._samples(gauges), _PREFIX)

    def _samples(self, gauges: Mapping[str, tuple[str, float]]) -> Iterator[Sample]:
        with self._lock:
            counts, buckets, lag_sum = dict(self._counts), list(self._buckets), self._lag_sum
        for name, about in _COUNTERS.items():
            rows = {labels: count for (counted, labels), count in counts.items() if counted == name}
            yield counter(name, about, rows or 0)
        about = "time from a Docker event to the end of the write it led to"
        yield histogram("lag_seconds", about, LAG_BUCKETS, buckets, lag_sum)
        for name, (about, value) in gauges.items():
            yield gauge(name, about, value)

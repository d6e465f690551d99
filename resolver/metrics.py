"""What the resolver counts, as Prometheus reads it.

Laws: pure, and never on the way of an answer: answers are counted where they are kept (``answers``), and
added up when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable

from discovery import exposition
from discovery.exposition import Labels, Sample, counter, gauge

__all__ = ["Labels", "Sample", "counter", "gauge", "render"]


def render(samples: Iterable[Sample]) -> str:
    """Return *samples* in Prometheus' text format."""
    return exposition.render(samples, "portcall_resolver_")

"""Numbers as Prometheus reads them: its text format, version 0.0.4.

Laws: pure. Whoever counts does so in its own way, and makes samples of it when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["CONTENT_TYPE", "Labels", "Sample", "counter", "gauge", "histogram", "render"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]
"""(name, value) of each label."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One metric with its values."""

    name: str
    """Without the prefix of the program."""
    kind: str
    about: str
    values: Mapping[Labels, float]
    """In the order to be written. Of a histogram the buckets: how many lie at or below each ``le``."""
    total: float | None = None
    """Of a histogram the sum of what was observed."""


def counter(name: str, about: str, values: float | Mapping[Labels, float]) -> Sample:
    """Return what only grows."""
    return Sample(
        name, "counter", about, dict(sorted(values.items())) if isinstance(values, Mapping) else {(): values}
    )


def gauge(name: str, about: str, value: float | Mapping[str, float], *, label: str = "") -> Sample:
    """Return what goes up and down; by *label*, if there is one."""
    if isinstance(value, Mapping):
        return Sample(
            name, "gauge", about, {((label, one),): number for one, number in sorted(value.items())}
        )
    return Sample(name, "gauge", about, {(): value})


def histogram(name: str, about: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> Sample:
    """Return how observations are spread.

    Args:
        counts: how many lie between each bound and the one before; one more than bounds, for those above.
        total: the sum of all that was observed.
    """
    buckets: dict[Labels, float] = {}
    below = 0
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        below += count
        buckets[(("le", str(bound)),)] = below
    return Sample(name, "histogram", about, buckets, total)


def render(samples: Iterable[Sample], prefix: str) -> str:
    """Return *samples* as text; their names begin with *prefix*."""
    lines = []
    for sample in samples:
        name = f"{prefix}{sample.name}"
        lines += [f"# HELP {name} {sample.about}", f"# TYPE {name} {sample.kind}"]
        suffix = "" if sample.total is None else "_bucket"
        lines += [f"{name}{suffix}{_inside(labels)} {value:.10g}" for labels, value in sample.values.items()]
        if sample.total is not None:
            count = max(sample.values.values())
            lines += [f"{name}_sum {sample.total:.10g}", f"{name}_count {count:.10g}"]
    return "\n".join(lines) + "\n"


def _inside(labels: Labels) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
    return f"{{{inside}}}" if inside else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""What the resolver counts, as Prometheus reads it.

Laws: pure, and never on the way of an answer: answers are counted where they are kept (``answers``), and
added up when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Labels", "Sample", "counter", "gauge", "render"]

Labels = tuple[tuple[str, str], ...]
"""(name, value) of each label."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One metric with its values."""

    name: str
    """Without the prefix."""
    kind: str
    about: str
    values: Mapping[Labels, float]


def counter(name: str, about: str, values: float | Mapping[Labels, float]) -> Sample:
    """Return what only grows."""
    return Sample(name, "counter", about, values if isinstance(values, Mapping) else {(): values})


def gauge(name: str, about: str, value: float | Mapping[str, float], *, label: str = "") -> Sample:
    """Return what goes up and down; by *label*, if there is one."""
    if isinstance(value, Mapping):
        return Sample(name, "gauge", about, {((label, one),): number for one, number in value.items()})
    return Sample(name, "gauge", about, {(): value})


def render(samples: Iterable[Sample]) -> str:
    """Return *samples* in Prometheus' text format, version 0.0.4."""
    lines = []
    for sample in samples:
        name = f"portcall_resolver_{sample.name}"
        lines += [f"# HELP {name} {sample.about}", f"# TYPE {name} {sample.kind}"]
        for labels, value in sorted(sample.values.items()):
            inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
            lines.append(f"{name}{{{inside}}} {value:.10g}" if inside else f"{name} {value:.10g}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""Durations as Go reads and writes them: ``10s``, ``1m30s``, ``250ms``.

Laws:
- Pure. Seconds (float) on our side.
- What Go refuses is refused in Go's words, since clients know the messages.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["MAX_SECONDS", "from_text", "to_text"]

_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "\u03bcs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
MAX_SECONDS: Final = (2**63 - 1) / 1e9
"""Go counts nanoseconds in 64 bits."""
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")


def from_text(text: str) -> float:
    """Return the seconds that *text* stands for.

    Raises:
        ValueError: Go could not read it; in Go's words.
    """
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0.0
    seconds, at = 0.0, 0
    while at < len(rest) and (part := _PART.match(rest, at)):
        number, unit = part.groups()
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        seconds += float(number) * _UNITS[unit]
        at = part.end()
    if not rest or at < len(rest) or seconds > MAX_SECONDS:
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * seconds


def to_text(seconds: float) -> str:
    """Write *seconds* as Go does: ``1m30s``, ``1.5s``, ``250ms``, ``0s``."""
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 and nanoseconds else ""
    if nanoseconds < 1_000_000_000:
        for unit, size in (("ms", 1_000_000), ("µs", 1_000), ("ns", 1)):
            if nanoseconds >= size:
                return f"{sign}{_decimal(nanoseconds, size)}{unit}"
        return "0s"
    minutes, nanoseconds = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(nanoseconds, 1_000_000_000)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{sign}{hours}h{text}" if hours else sign + text


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = str(part).zfill(len(str(unit)) - 1).rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)

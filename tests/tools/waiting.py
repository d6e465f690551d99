"""Waiting for a condition instead of sleeping for a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_until"]

_T = TypeVar("_T")


def wait_until(
    predicate: Callable[[], _T],
    timeout: float = 20.0,
    *,
    message: str = "",
    interval: float = 0.02,
    ignoring: type[Exception] | tuple[type[Exception], ...] = (),
) -> _T:
    """Call `predicate` until it answers something true, and return that.

    Args:
        predicate: asked at once, then every `interval`.
        timeout: seconds after which to give up. The predicate is asked once more after the deadline, so a
            condition that came true while the machine was busy elsewhere still counts.
        message: what was awaited, for the failure.
        interval: seconds between two questions.
        ignoring: exceptions of the predicate that mean "not yet": a connection refused while a daemon starts.

    Raises:
        AssertionError: the condition did not come true; says what the predicate answered last.
    """
    deadline = time.monotonic() + timeout
    while True:
        last_chance = time.monotonic() >= deadline
        try:
            value = predicate()
            seen = repr(value)
            if value:
                return value
        except ignoring as exc:
            seen = f"{type(exc).__name__}: {exc}"
        if last_chance:
            awaited = message or getattr(predicate, "__name__", "the condition")
            raise AssertionError(f"{awaited}: still not so after {timeout} s; last answer: {seen}")
        time.sleep(interval)

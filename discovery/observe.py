"""Hooks for metrics and traces: what the integrations do, told to whoever wants to know.

    integration ──Attempt──┐
                           ├──> every observer, at once, in the thread where it happened
    watch ───────Snapshot──┘

``discovery.integrations.prometheus`` and ``discovery.integrations.opentelemetry`` are observers; an
application may write its own.

Laws:
- With no observer an event costs one comparison.
- An observer's fault is its own: it is logged, and the request goes on.
- Observers are called from request threads, event loops and watching threads: they must not wait.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from discovery.model import Instance, ServiceName, Snapshot

__all__ = ["Attempt", "Observer", "attempted", "changed", "observe"]

log: Final = logging.getLogger("discovery")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to have a request answered by one instance."""

    library: str
    """Which integration: ``requests``, ``httpx``, ``aiohttp``, ``urllib3``."""
    service: ServiceName
    instance: Instance
    number: int
    """1 for the first instance that a request is tried on, 2 for the second, ..."""
    seconds: float
    """Until the answer began, or the failure."""
    error: BaseException | None
    """None when it was answered, whatever the status code."""


class Observer(Protocol):
    """Is told what happens; see the laws above."""

    def attempted(self, attempt: Attempt) -> None:
        """An instance answered a request, or failed to."""

    def changed(self, snapshot: Snapshot) -> None:
        """The instances of a service that an integration uses are now these."""


_observers: tuple[Observer, ...] = ()
_lock = threading.Lock()


def observe(observer: Observer) -> Callable[[], None]:
    """Tell *observer* all events from now on; returns the function that ends it."""
    global _observers
    with _lock:
        _observers = (*_observers, observer)

    def end() -> None:
        global _observers
        with _lock:
            _observers = tuple(other for other in _observers if other is not observer)

    return end


def attempted(attempt: Callable[[], Attempt]) -> None:
    """Tell the observers of an attempt; *attempt* is called only when there is one."""
    if _observers:
        event = attempt()
        for observer in _observers:
            try:
                observer.attempted(event)
            except Exception:
                log.exception("the observer %r failed", observer)


def changed(snapshot: Snapshot) -> None:
    """Tell the observers what the instances of a service are now."""
    for observer in _observers:
        try:
            observer.changed(snapshot)
        except Exception:
            log.exception("the observer %r failed", observer)

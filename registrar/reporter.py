"""Tells the agent of the checks that the registrar keeps.

Laws:
- What the agent was told last is not told again, except to renew it: telling the same wakes nobody, but a
  thousand services times every pass is work for nothing.
- May be used from any thread; no lock is held while the agent is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable

from discovery.backends import Registry
from discovery.model import CheckID, ServiceID
from registrar.status import Report

__all__ = ["Reporter"]


class Reporter:
    """See the module."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._told: dict[CheckID, Report] = {}

    def due(self, reports: Iterable[Report]) -> list[Report]:
        """Return those of *reports* that the agent has not been told yet."""
        with self._lock:
            return [report for report in reports if self._told.get(report.check_id) != report]

    def tell(self, report: Report) -> None:
        """Tell the agent. Raises as ``Registry.update_check`` does, and then counts as not told."""
        self._registry.update_check(report.check_id, report.status, report.output)
        with self._lock:
            self._told[report.check_id] = report

    def told(self) -> Collection[Report]:
        """Return everything that has to be renewed while a heartbeat is kept."""
        with self._lock:
            return list(self._told.values())

    def forget(self, service_id: ServiceID | None = None) -> None:
        """Forget what the agent was told of one service, which was registered anew or is gone; or of all."""
        with self._lock:
            self._told = {
                key: report
                for key, report in self._told.items()
                if service_id is not None and report.service_id != service_id
            }

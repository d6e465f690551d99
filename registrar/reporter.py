"""Tells the agent of the checks that the registrar keeps.

Laws:
- What the agent was told last is not told again, except to renew it: telling the same wakes nobody, but a
  thousand services times every pass is work for nothing.
- The agent is told of one check by one thread at a time: what is told last stays, and what is renewed is
  what was told last.
- What is forgotten while it is told stays forgotten: the agent may have lost it since.
- May be used from any thread. While the agent is asked, only the same check has to wait (and, by chance,
  one in ``_TURNS`` of the others).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import Final

from discovery.backends import Registry
from discovery.errors import UnknownResource
from discovery.model import CheckID, ServiceID
from registrar.status import Report, check_id

__all__ = ["Reporter"]

_TURNS: Final = 64
"""Locks that all checks share: one for each would have to be kept as long as somebody may wait for it."""


class Reporter:
    """See the module."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._turns = tuple(threading.Lock() for _ in range(_TURNS))
        self._lock = threading.Lock()
        self._told: dict[CheckID, Report] = {}
        self._telling: dict[CheckID, Report] = {}
        """What is under way. What a failure leaves behind, the next report of the check replaces."""

    def due(self, reports: Iterable[Report]) -> list[Report]:
        """Return those of *reports* that the agent has not been told yet."""
        with self._lock:
            return [report for report in reports if self._told.get(report.check_id) != report]

    def tell(self, report: Report) -> None:
        """Tell the agent. Raises as ``Registry.update_check`` does, and then counts as not told."""
        with self._turn(report.check_id):
            with self._lock:
                self._told.pop(report.check_id, None)
            self._send(report)

    def renew(self, check: CheckID) -> None:
        """Tell the agent once more what it was told of *check* last, if anything.

        Raises as ``Registry.update_check`` does. What the agent does not know then counts as not told.
        """
        with self._turn(check):
            with self._lock:
                report = self._told.get(check)
            if report is None:
                return
            try:
                self._send(report)
            except UnknownResource:
                with self._lock:
                    self._told.pop(check, None)
                raise

    def kept(self) -> Collection[Report]:
        """Return everything that has to be renewed while a heartbeat is kept: the states of containers.

        A command's result is not among them. It is renewed by running the command, or not at all.
        """
        with self._lock:
            return [
                report for report in self._told.values() if report.check_id == check_id(report.service_id)
            ]

    def forget(self, service_id: ServiceID | None = None) -> None:
        """Forget what the agent was told of one service, which was registered anew or is gone; or of all."""
        with self._lock:
            for reports in (self._told, self._telling):
                for key, report in list(reports.items()):
                    if service_id is None or report.service_id == service_id:
                        del reports[key]

    def _turn(self, check: CheckID) -> threading.Lock:
        return self._turns[hash(check) % _TURNS]

    def _send(self, report: Report) -> None:
        """Tell the agent, and note it. The caller has the check's turn."""
        with self._lock:
            self._telling[report.check_id] = report
        self._registry.update_check(report.check_id, report.status, report.output)
        with self._lock:
            if self._telling.pop(report.check_id, None):
                self._told[report.check_id] = report

"""Runs commands inside containers, for checks.

Laws:
- A probe is run at once when it is new, then every interval; never twice at the same time, and one that
  takes longer than its interval is late, not piled up.
- Exit codes are those of the agent's scripts (Consul: "Checks"): 0 passing, 1 warning, else critical.
- A command that cannot be run because Docker is away says nothing: its check's TTL will.
- The threads begin with the first probe: most hosts have none.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from discovery.errors import DiscoveryError
from discovery.model import CheckID, Status
from registrar.checks import Probe
from registrar.containers import ContainerID
from registrar.status import MAX_OUTPUT, Report

__all__ = ["Executor", "Prober"]

log = logging.getLogger("registrar")

_THREADS: Final = 4
_STATUSES: Final[dict[int | None, Status]] = {0: "passing", 1: "warning"}


class Executor(Protocol):
    """Runs a command inside a container."""

    def execute(
        self, container: ContainerID, args: tuple[str, ...], timeout: float
    ) -> tuple[int | None, str]:
        """Return exit code and output; a code of None: it took longer than *timeout* seconds.

        Raises:
            DiscoveryError: it could not be run.
        """

    def cancel(self) -> None:
        """Make every ``execute`` under way, and every later one, fail now."""


class Prober:
    """See the module."""

    def __init__(
        self,
        executor: Executor,
        tell: Callable[[Probe, Report], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        tell: called in a thread of the prober's with every result; must not raise DiscoveryError.
        """
        self._executor = executor
        self._tell = tell
        self._clock = clock
        self._changed = threading.Condition()
        self._wanted: dict[ContainerID, dict[CheckID, Probe]] = {}
        self._due: list[tuple[float, CheckID, Probe]] = []
        """A heap. What is no longer wanted is dropped when it comes up."""
        self._threads: list[threading.Thread] = []
        self._closed = False

    def set(self, container: ContainerID, probes: Iterable[Probe]) -> None:
        """Run exactly *probes* inside *container* from now on."""
        wanted = {probe.check_id: probe for probe in probes}
        with self._changed:
            before = self._wanted.pop(container, {})
            if wanted:
                self._wanted[container] = wanted
            for check_id, probe in wanted.items():
                if before.get(check_id) != probe:
                    heapq.heappush(self._due, (self._clock(), check_id, probe))
            if self._due and not self._threads and not self._closed:
                self._start()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop; idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._threads:
            self._executor.cancel()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._work, name=f"registrar-probe-{number}")
            for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (probe := self._take()) is not None:
            begun = self._clock()
            try:
                code, output = self._executor.execute(probe.container, probe.args, probe.timeout)
            except DiscoveryError as exc:
                log.debug("cannot run %s: %s", probe.check_id, exc)
            else:
                if code is None:
                    output = f"no answer within {probe.timeout:g} s\n{output}"
                status = _STATUSES.get(code, "critical")
                self._tell(
                    probe, Report(probe.service_id, probe.check_id, status, output[:MAX_OUTPUT].strip())
                )
            with self._changed:
                if self._is_wanted(probe):
                    due = max(begun + probe.interval, self._clock())
                    heapq.heappush(self._due, (due, probe.check_id, probe))
                    self._changed.notify()

    def _take(self) -> Probe | None:
        """Wait for a probe that is due; None when the prober is closed."""
        with self._changed:
            while not self._closed:
                delay: float | None = None
                if self._due:
                    due, _, probe = self._due[0]
                    delay = due - self._clock()
                    if not self._is_wanted(probe):
                        heapq.heappop(self._due)
                        continue
                    if delay <= 0:
                        heapq.heappop(self._due)
                        return probe
                self._changed.wait(delay)
            return None

    def _is_wanted(self, probe: Probe) -> bool:
        return self._wanted.get(probe.container, {}).get(probe.check_id) == probe

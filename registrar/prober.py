"""Runs commands inside containers, for checks.

Laws:
- A probe is run at once when it is new, then every interval; never twice at the same time, and one that
  takes longer than its interval is late, not piled up. One that is set anew while it runs waits for
  the end of that run, whose result is not told.
- Exit codes are those of the agent's scripts (Consul: "Checks"): 0 passing, 1 warning, else critical.
- A command that cannot be run because Docker is away says nothing: its check's TTL will.
- The threads begin with the first probe: most hosts have none.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

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


class _Chain(NamedTuple):
    """The runs of one probe, from when it is wanted until it no longer is."""

    serial: int
    """Tells a probe that was wanted before from the same one that is wanted again."""
    probe: Probe


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
        self._wanted: dict[ContainerID, dict[CheckID, _Chain]] = {}
        """Each of them is either due, once, or its check is running."""
        self._due: list[tuple[float, _Chain]] = []
        """A heap. What is no longer wanted is dropped when it comes up."""
        self._running: set[tuple[ContainerID, CheckID]] = set()
        self._serials = itertools.count()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def set(self, container: ContainerID, probes: Iterable[Probe]) -> None:
        """Run exactly *probes* inside *container* from now on."""
        with self._changed:
            before = self._wanted.pop(container, {})
            wanted: dict[CheckID, _Chain] = {}
            for probe in probes:
                chain = before.get(probe.check_id)
                if chain is None or chain.probe != probe:
                    chain = _Chain(next(self._serials), probe)
                    # While the one before still runs, this one waits for its end.
                    if (container, probe.check_id) not in self._running:
                        heapq.heappush(self._due, (self._clock(), chain))
                wanted[probe.check_id] = chain
            if wanted:
                self._wanted[container] = wanted
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
        while (chain := self._take()) is not None:
            begun = self._clock()
            if report := self._run(chain.probe):
                with self._changed:
                    wanted = self._current(chain) == chain
                if wanted:
                    self._tell(chain.probe, report)
            self._finished(chain, begun)

    def _run(self, probe: Probe) -> Report | None:
        """Return what the command says of the service; None when it cannot be run."""
        try:
            code, output = self._executor.execute(probe.container, probe.args, probe.timeout)
        except DiscoveryError as exc:
            log.debug("cannot run %s: %s", probe.check_id, exc)
            return None
        if code is None:
            output = f"no answer within {probe.timeout:g} s\n{output}"
        status = _STATUSES.get(code, "critical")
        return Report(probe.service_id, probe.check_id, status, output[:MAX_OUTPUT].strip())

    def _finished(self, chain: _Chain, begun: float) -> None:
        """Have the check run again: after its interval, or at once where it was set anew meanwhile."""
        with self._changed:
            self._running.discard((chain.probe.container, chain.probe.check_id))
            if current := self._current(chain):
                due = self._clock()
                if current == chain:
                    due = max(begun + chain.probe.interval, due)
                heapq.heappush(self._due, (due, current))
                self._changed.notify()

    def _take(self) -> _Chain | None:
        """Wait for a probe that is due, and mark its check as running; None when the prober is closed."""
        with self._changed:
            while not self._closed:
                delay: float | None = None
                if self._due:
                    due, chain = self._due[0]
                    delay = due - self._clock()
                    if self._current(chain) != chain:
                        heapq.heappop(self._due)
                        continue
                    if delay <= 0:
                        heapq.heappop(self._due)
                        self._running.add((chain.probe.container, chain.probe.check_id))
                        return chain
                self._changed.wait(delay)
            return None

    def _current(self, chain: _Chain) -> _Chain | None:
        """Return the chain that is wanted now for the check of *chain*. The caller holds the lock."""
        return self._wanted.get(chain.probe.container, {}).get(chain.probe.check_id)

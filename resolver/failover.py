"""Several agents of one cluster behind one catalogue: the first that answers, until it does not.

Laws:
- All readers follow the same agent, so that answers of one moment come from one place.
- The index of one agent is never shown to another: it may be behind, and would hold the read until it had
  caught up.
- An agent that refuses (4xx) has answered: another one of its cluster would say the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from discovery.backends import Backend, Reader, read_once
from discovery.errors import Attempt, RegistryUnavailable
from discovery.model import Query, Reply, Source

__all__ = ["Failover"]

log = logging.getLogger("resolver")


class Failover:
    """A catalogue over *agents*, in the order in which they are preferred at the start. Owns them."""

    source: Source = "http"

    def __init__(self, agents: Sequence[Backend]) -> None:
        self.agents = tuple(agents)
        self._current = 0
        self._lock = threading.Lock()

    @property
    def current(self) -> Backend:
        """The agent that is asked now."""
        return self.agents[self._current]

    @property
    def where(self) -> str:
        return self.current.where

    def failed(self, agent: Backend) -> None:
        """Ask the next agent from now on, unless another reader has moved on from *agent* already."""
        with self._lock:
            if agent is not self.current:
                return
            self._current = (self._current + 1) % len(self.agents)
        log.warning("%s cannot be asked; going on with %s", agent.where, self.where)

    def connect(self) -> FailoverReader:
        return FailoverReader(self)

    def read(self, query: Query, *, timeout: float = 10.0) -> Reply:
        return read_once(self, query, timeout)

    def close(self) -> None:
        for agent in self.agents:
            agent.close()


class FailoverReader:
    """A ``Reader`` that goes from agent to agent with its ``Failover``."""

    def __init__(self, failover: Failover) -> None:
        self._failover = failover
        self._readers: dict[str, Reader] = {}
        self._index_of = ""  # where the last index came from
        self._interrupted = False

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        attempts: list[Attempt] = []
        for _ in self._failover.agents:
            agent = self._failover.current
            known = index if agent.where == self._index_of else 0
            try:
                reply = self._reader(agent).read(query, index=known, wait=wait, timeout=timeout)
            except RegistryUnavailable as exc:
                if self._interrupted or len(self._failover.agents) == 1:
                    raise
                attempts.append(Attempt(agent.where, 0.0, str(exc)))
                self._failover.failed(agent)
                continue
            self._index_of = agent.where
            return reply
        tried = "; ".join(attempt.error for attempt in attempts)
        raise RegistryUnavailable(f"no agent can be asked: {tried}", attempts=attempts)

    def interrupt(self) -> None:
        # First the flag, then the readers, and in ``_reader`` the other way round: whoever comes second sees
        # the other.
        self._interrupted = True
        for reader in list(self._readers.values()):
            reader.interrupt()

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def _reader(self, agent: Backend) -> Reader:
        reader = self._readers.get(agent.where)
        if reader is None:
            reader = self._readers[agent.where] = agent.connect()
        if self._interrupted:
            raise RegistryUnavailable(f"asking {agent.where} was interrupted")
        return reader

"""Questions that are asked of the catalogue once, to see whether they lead anywhere.

Laws:
- Whoever makes up names must not make up connections: an agent accepts 200 from one address, and resets all
  others, those of blocking reads among them. So there are few threads, and each keeps its connection.
- No thread before the first question. What is told is told in these threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from discovery.backends import Catalogue, Reader
from discovery.engine import Known
from discovery.errors import DiscoveryError, RegistryUnavailable
from discovery.model import Query

__all__ = ["Inquiries"]

log = logging.getLogger("resolver")

_THREADS: Final = 2
"""An agent on this host answers within a millisecond; the second for who waits for another data centre."""
_TIMEOUT: Final = 2.0  # s; who asked has left by then
_JOIN_TIMEOUT: Final = 5.0  # s; a read that is interrupted ends at once, resolving a host name does not

Tell = Callable[[Known], None]


class Inquiries:
    """Asks *catalogue*, in the order of the questions."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._questions: SimpleQueue[tuple[Query, Tell] | None] = SimpleQueue()
        self._readers: list[Reader] = []
        self._threads: list[threading.Thread] = []

    def ask(self, query: Query, tell: Tell) -> None:
        """Call *tell* with what the catalogue says to *query*, be it an error."""
        if not self._threads:
            for _ in range(_THREADS):
                reader = self._catalogue.connect()
                thread = threading.Thread(
                    target=self._serve, args=(reader,), name="resolver-inquiry", daemon=True
                )
                self._readers.append(reader)
                self._threads.append(thread)
                thread.start()
        self._questions.put((query, tell))

    def close(self) -> None:
        """End the threads; questions under way are told as unanswered."""
        for reader in self._readers:
            reader.interrupt()
        for _ in self._threads:
            self._questions.put(None)
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT)

    def _serve(self, reader: Reader) -> None:
        while (question := self._questions.get()) is not None:
            query, tell = question
            tell(self._answer(reader, query))
        reader.close()

    def _answer(self, reader: Reader, query: Query) -> Known:
        error: DiscoveryError | None = None
        try:
            reply = reader.read(query, timeout=_TIMEOUT)
        except DiscoveryError as exc:
            return Known(query, error=exc)
        except Exception as exc:  # a fault of ours in one answer must not end this thread
            log.exception("reading %s from %s failed", query, self._catalogue.where)
            return Known(query, error=DiscoveryError(f"reading {query} failed: {exc!r}"))
        if not reply.known_leader:
            error = RegistryUnavailable(f"the servers behind {self._catalogue.where} have no leader")
        fetched_at = time.monotonic()
        return Known(query, reply.value, fetched_at=fetched_at, stale=error is not None, error=error)

"""Finds out which services have changed, without asking for each.

    names (catalog/services) ─ changed ─┐
    nodes                    ─ changed ─┴─> marks of every node ── difference ─┐
    checks that are critical, or warning ────────────────────────── difference ┴─> changed({"web", ...})

A blocking read takes a connection of the 200 that Consul accepts from one address, so thousands of services
cannot have one each, and to ask for each in turn takes seconds and a core. Four blocking reads see that
something has changed, and a read per node, of which there are few, what.

Laws:
- Tells too many rather than too few: who is told asks anew, and finds that nothing has changed.
- ``sees`` is False while anything of this cannot be read; nobody may rely on not being told.
- What has been compared is kept through an outage, and compared with what is there afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Final, Protocol

from discovery.backends import Reader
from discovery.errors import DiscoveryError
from discovery.model import (
    CheckOf,
    ChecksQuery,
    Mark,
    MarksQuery,
    NamesQuery,
    Node,
    NodeName,
    NodesQuery,
    Query,
)
from discovery.names import fold

if TYPE_CHECKING:
    from discovery.engine import Known

__all__ = ["WATCHED", "Scout"]

WATCHED: Final[tuple[Query, ...]] = (
    NamesQuery(),
    NodesQuery(),
    ChecksQuery("critical"),
    ChecksQuery("warning"),
)
"""What is followed with a blocking read each."""
RETRY: Final = 1.0  # s until what could not be read is read again
REST: Final = 1.0
"""Rest after each comparison, in multiples of the time it took: half of a core at most, while services change
all the time."""
READ_TIMEOUT: Final = 5.0  # s for the marks of one node


class _Subscribe(Protocol):
    def __call__(
        self, query: Query, callback: Callable[[Known], None], *, every: bool
    ) -> Callable[[], None]: ...


class Scout:
    """Tells *changed* the folded names of the agent's data centre's services that may have changed.

    The first comparison tells all of them: they may have changed since they were read.
    """

    def __init__(
        self, subscribe: _Subscribe, reader: Reader, changed: Callable[[Collection[str]], None]
    ) -> None:
        """Only remember the arguments.

        Args:
            subscribe: of an engine; ``every`` asks to be told of each index, also when the value is the same.
            reader: for the marks; the scout closes it.
            changed: called in background threads.
        """
        self.sees: bool = False
        self._subscribe = subscribe
        self._reader = reader
        self._changed = changed
        self._known: dict[Query, Known] = {}
        self._marks: dict[NodeName, frozenset[Mark]] = {}
        self._nodes: dict[NodeName, Node] = {}
        self._compared: tuple[int, int] | None = None  # the indexes of names and nodes
        self._look = threading.Event()
        self._stopping = threading.Event()
        self._unsubscribe: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._work, name="discovery-scout", daemon=True)

    def start(self) -> None:
        """Begin to look.

        Raises:
            RegistryUnavailable: the engine is closed.
        """
        self._thread.start()
        for query in WATCHED:
            unsubscribe = self._subscribe(query, self._heard, every=True)
            self._unsubscribe.append(unsubscribe)
            if self._stopping.is_set():  # closed meanwhile, perhaps before it knew of this one
                unsubscribe()

    def close(self) -> None:
        """Stop looking, without waiting for the thread to end."""
        self.sees = False
        self._stopping.set()
        self._look.set()
        self._reader.interrupt()
        for unsubscribe in self._unsubscribe:
            unsubscribe()

    def join(self, timeout: float) -> None:
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(timeout)

    # --- checks, in the threads of the engine

    def _heard(self, known: Known) -> None:
        before = self._known.get(known.query)
        self._known[known.query] = known
        if known.stale or known.error is not None:
            self.sees = False
        elif isinstance(known.query, ChecksQuery) and before is not None and before.value is not None:
            different: set[CheckOf] = set(before.value) ^ set(known.value)
            if different:
                self._changed(self._services_of(different))
        self._look.set()

    def _services_of(self, checks: Iterable[CheckOf]) -> set[str]:
        """Return the services that *checks* are of; a check of a node is one of all that is there."""
        found: set[str] = set()
        for node, service, _ in checks:
            if service:
                found.add(fold(service))
            else:
                found.update(fold(name) for name, *_ in self._marks.get(node, ()))
        return found

    # --- marks, in a thread of their own

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                self._look.wait()
                self._look.clear()
                if not self._all_fresh():
                    continue  # their next word wakes us
                started_at = time.monotonic()
                try:
                    compared = self._compare()
                except DiscoveryError:
                    self.sees = False
                    self._stopping.wait(RETRY)
                    self._look.set()
                    continue
                self.sees = self._all_fresh() and not self._stopping.is_set()
                if compared:
                    self._stopping.wait(REST * (time.monotonic() - started_at))
        finally:
            self._reader.close()

    def _all_fresh(self) -> bool:
        known = [self._known.get(query) for query in WATCHED]
        return all(
            one is not None and one.value is not None and not one.stale and one.error is None for one in known
        )

    def _compare(self) -> bool:
        """Read the marks of every node anew and tell what differs; False when names and nodes are as before.

        Raises:
            DiscoveryError: a node could not be read; what differs there is found next time.
        """
        # The indexes first: what changes while we read has a newer one, and is read again.
        names, nodes = self._known[NamesQuery()], self._known[NodesQuery()]
        indexes = names.index, nodes.index
        if indexes == self._compared:
            return False
        there = {node.name: node for node in nodes.value}
        for name in there.keys() | self._marks.keys():
            if self._stopping.is_set():
                return False
            marks = frozenset(self._reader.read(MarksQuery(name), timeout=READ_TIMEOUT).value)
            before = self._marks.get(name, frozenset())
            # An address of the node is one of each of its services.
            same = there.get(name) == self._nodes.get(name)
            different = marks ^ before if same else marks | before
            self._marks[name] = marks
            if different:
                self._changed({fold(service) for service, *_ in different})
        for gone in self._marks.keys() - there.keys():
            del self._marks[gone]
        self._nodes, self._compared = there, indexes
        return True

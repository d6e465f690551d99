"""A catalogue in memory whose every answer, and every failure, a test decides."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from discovery.engine import Known
from discovery.errors import DiscoveryError, RegistryTimeout, RegistryUnavailable
from discovery.model import (
    CheckID,
    HealthCheck,
    Node,
    NodeName,
    Query,
    Reply,
    ServiceEntry,
    ServiceID,
    ServiceName,
    ServiceQuery,
    Source,
    Status,
)
from tests.tools import wait_until

__all__ = ["Ask", "FakeCatalogue", "Heard", "entry", "service"]


def service(name: str, dc: str | None = None) -> ServiceQuery:
    return ServiceQuery(ServiceName(name), dc)


def entry(
    name: str = "web",
    port: int = 80,
    *,
    host: str = "10.0.0.1",
    status: Status = "passing",
    output: str = "",
    **more: Any,
) -> ServiceEntry:
    """One instance, `<name>-<port>`, with one check."""
    identity = ServiceID(f"{name}-{port}")
    check = HealthCheck(CheckID(f"service:{identity}"), f"check of {identity}", status, output, identity)
    node = Node(NodeName("node-1"), "10.0.0.9", "dc1")
    more.setdefault("node", node)
    return ServiceEntry(id=identity, name=ServiceName(name), address=host, port=port, checks=(check,), **more)


@dataclass(frozen=True)
class Ask:
    """One read that reached the catalogue."""

    query: Query
    index: int
    reader: int
    thread: int
    at: float
    """Seconds on the monotonic clock."""


class FakeCatalogue:
    """A `Catalogue` with Consul's rules for indexes and blocking reads.

    `down` and `refused` are exceptions to raise, for all queries or for one; `leader` says whether there is
    one; `silent` holds the answers to new questions back until it is cleared.
    """

    source: Source = "http"
    where = "fake://registry"

    def __init__(self) -> None:
        self.asks: list[Ask] = []
        self.down: DiscoveryError | None = None
        self.refused: dict[Query, Exception] = {}
        self.leader = True
        self.silent = False
        self.strips_index = False
        self.at_once = 0  # most reads under way at one time that began while `down` was set
        self.open_readers: set[int] = set()
        self._values: dict[Query, tuple[Any, int]] = {}
        self._index = 10
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._attempts = 0
        self._releases = 0

    # --- what a test does to it

    def set(self, query: Query, *value: Any) -> None:
        """Give *query* the value `(*value)`, as a change of the catalogue."""
        with self._changed:
            self._index += 1
            self._values[query] = (value, self._index)
            self._changed.notify_all()

    def change(self, **attributes: Any) -> None:
        """Set attributes and let blocked reads notice."""
        with self._changed:
            for name, value in attributes.items():
                setattr(self, name, value)
            self._changed.notify_all()

    def fail(self, exc: DiscoveryError | None = None) -> None:
        """Break off every read under way, and refuse to be reached until `recover`."""
        self.change(down=exc or RegistryUnavailable("cannot reach the fake registry"))

    def recover(self, **attributes: Any) -> None:
        self.change(down=None, **attributes)

    def rewind(self, index: int = 3) -> None:
        """Count indexes from *index* again, as a server restored from a backup does; wakes nobody."""
        with self._changed:
            self._index = index
            self._values = {query: (value, index) for query, (value, _) in self._values.items()}

    def release_blocked(self) -> None:
        """Let every blocking read return with what there is, as if its wait were over."""
        with self._changed:
            self._releases += 1
            self._changed.notify_all()

    def asked(self, query: Query) -> list[Ask]:
        return [ask for ask in list(self.asks) if ask.query == query]

    # --- Catalogue

    def connect(self) -> FakeReader:
        return FakeReader(self, next(self._numbers))

    def read(self, query: Query, *, timeout: float = 10.0) -> Reply:
        reader = self.connect()
        try:
            return reader.read(query, timeout=timeout)
        finally:
            reader.close()

    def answer(self, reader: FakeReader, query: Query, index: int, wait: float, timeout: float) -> Reply:
        with self._changed:
            self.open_readers.add(reader.number)
            self.asks.append(Ask(query, index, reader.number, threading.get_ident(), time.monotonic()))
            releases = self._releases
            attempt = self.down is not None
            self._attempts += attempt
            self.at_once = max(self.at_once, self._attempts)

            def over() -> bool:
                if reader.interrupted or query in self.refused or self._releases != releases:
                    return True
                answers = self.down is not None or self.strips_index or not index
                answers = answers or self._of(query)[1] > index
                return answers and not self.silent

            try:
                self._changed.wait_for(over, wait if index else timeout)
            finally:
                self._attempts -= attempt
            if reader.interrupted:
                raise RegistryUnavailable("interrupted")
            refusal = self.refused.get(query)
            if refusal is not None and not isinstance(refusal, DiscoveryError):
                raise refusal  # our own fault, before anybody is asked
            if self.silent:
                raise RegistryTimeout("the fake registry is silent")
            if self.down is not None:
                raise self.down
            if refusal is not None:
                raise refusal
            value, at = self._of(query)
            return Reply(value, 0 if self.strips_index else at, known_leader=self.leader)

    def _of(self, query: Query) -> tuple[Any, int]:
        return self._values.get(query, ((), 1))


class FakeReader:
    def __init__(self, catalogue: FakeCatalogue, number: int) -> None:
        self.number = number
        self.interrupted = False
        self._catalogue = catalogue

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        return self._catalogue.answer(self, query, index, wait, timeout)

    def interrupt(self) -> None:
        with self._catalogue._changed:
            self.interrupted = True
            self._catalogue._changed.notify_all()

    def close(self) -> None:
        self._catalogue.open_readers.discard(self.number)


class Heard:
    """A subscriber that remembers what it was told, in order."""

    def __init__(self) -> None:
        self.all: list[Known] = []

    def __call__(self, known: Known) -> None:
        self.all.append(known)

    @property
    def last(self) -> Known | None:
        return self.all[-1] if self.all else None

    def until(self, wanted: Callable[[Known], bool], message: str = "", timeout: float = 5.0) -> Known:
        """Wait until what was heard last is *wanted*, and return it."""
        wait_until(lambda: self.last is not None and wanted(self.last), timeout, message=message)
        assert self.last is not None
        return self.last

    def value(self, *value: Any) -> Known:
        """Wait until the value heard last is `(*value)`, and not stale."""
        return self.until(lambda known: known.value == value and not known.stale, f"hears {value}")

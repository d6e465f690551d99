"""One agent in memory, with blocking reads and faults on demand.

What it does of Consul's behaviour is little, and test_reconcile.py runs against it and against a real
agent alike; what it adds is that it can fail, forget and hang at a given moment.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from discovery.backends import AgentInfo
from discovery.errors import RegistryUnavailable, UnknownResource
from discovery.model import (
    CheckID,
    Node,
    NodeName,
    NodeServicesQuery,
    Query,
    Registration,
    Reply,
    ServiceEntry,
    ServiceID,
    Source,
    Status,
)

__all__ = ["FakeRegistry"]


class FakeRegistry:
    """A ``Backend``. ``faults`` maps the name of a method to what it raises until it is taken out."""

    source: Source = "http"
    where = "fake://registry"

    def __init__(self) -> None:
        self.faults: dict[str, Exception] = {}
        self.writes: list[tuple[str, ServiceID]] = []
        """``register`` and ``deregister`` with their ids, in order, also those that failed."""
        self.changed = threading.Condition()
        self._services: dict[ServiceID, Registration] = {}
        self.checks: dict[CheckID, tuple[Status, str]] = {}
        """TTL checks: their status and output."""
        self._services_of: dict[CheckID, ServiceID] = {}
        self._index = 1
        self._life = 0
        """Counts restarts: a read under way breaks when it changes."""
        self._connection = 1
        self._untold: tuple[ServiceEntry, ...] | None = None
        """What the catalogue still shows of an agent that was replaced between two reads."""

    # A Registry -------------------------------------------------------------------------------------------

    def register(self, registration: Registration, *, new: bool = False) -> None:
        self.writes.append(("register", registration.id))
        self._check("register")
        with self.changed:
            before = self._drop_checks(registration.id)
            # A TTL check starts as critical; one that is registered again keeps its status.
            for check in registration.checks:
                if check.ttl:
                    self.checks[check.id] = before.get(check.id, ("critical", ""))
                    self._services_of[check.id] = registration.id
            # Registering the same again changes nothing, and an agent does not tell checks.
            if self._services.get(registration.id) != replace(registration, checks=()):
                self._services[registration.id] = replace(registration, checks=())
                self._bump()

    def deregister(self, service_id: ServiceID) -> None:
        self.writes.append(("deregister", service_id))
        self._check("deregister")
        self.drop(service_id)

    def registered(self) -> Mapping[ServiceID, Registration]:
        self._check("registered")
        with self.changed:
            return dict(self._services)

    def update_check(self, check_id: CheckID, status: Status, output: str = "") -> None:
        self._check("update_check")
        with self.changed:
            if check_id not in self.checks:
                raise UnknownResource(f"fake://registry answered: unknown check {check_id}", status=404)
            self.checks[check_id] = (status, output)

    def maintenance(self, service_id: ServiceID, enable: bool, reason: str = "") -> None:
        self._check("maintenance")

    def agent(self) -> AgentInfo:
        self._check("agent")
        return AgentInfo("node-1", "dc1", "1.8.7", "172.28.128.3")

    # A Catalogue ------------------------------------------------------------------------------------------

    def connect(self) -> _Reader:
        return _Reader(self)

    def read(self, query: Query, *, timeout: float = 10.0) -> Reply:
        return self.connect().read(query, timeout=timeout)

    def close(self) -> None:
        pass

    # What a test does -------------------------------------------------------------------------------------

    def put(self, registration: Registration) -> None:
        """Have somebody else register something."""
        with self.changed:
            self._services[registration.id] = registration
            self._bump()

    def drop(self, service_id: ServiceID) -> None:
        """Have somebody else remove something."""
        with self.changed:
            self._drop_checks(service_id)
            if self._services.pop(service_id, None) is not None:
                self._bump()

    def restart_empty(self) -> None:
        """Break every connection and forget everything."""
        with self.changed:
            self._services.clear()
            self.checks.clear()
            self._services_of.clear()
            self._index = 1
            self._life += 1
            self.changed.notify_all()

    def restart_empty_between_reads(self) -> None:
        """Forget everything, with no read that breaks, and a catalogue that has not been told."""
        with self.changed:
            self._untold = self._rows()
            self._services.clear()
            self.checks.clear()
            self._services_of.clear()
            self._connection += 1
            self.changed.notify_all()

    def break_reads(self) -> None:
        """Break the connections under way."""
        with self.changed:
            self._life += 1
            self.changed.notify_all()

    def go_away(self) -> None:
        """Refuse everything until ``come_back``."""
        gone = RegistryUnavailable("cannot ask Consul at fake://registry: connection refused")
        for name in ("register", "deregister", "registered", "agent", "read"):
            self.faults[name] = gone
        self.break_reads()

    def come_back(self) -> None:
        self.faults.clear()

    def table(self) -> dict[str, tuple[str, str, int]]:
        """id -> (name, address, port)."""
        with self.changed:
            return {key: (one.name, one.address, one.port) for key, one in self._services.items()}

    # Inside -----------------------------------------------------------------------------------------------

    def _check(self, name: str) -> None:
        if fault := self.faults.get(name):
            raise fault

    def _drop_checks(self, service_id: ServiceID) -> dict[CheckID, tuple[Status, str]]:
        mine = [check for check in self.checks if self._services_of.get(check) == service_id]
        return {check: self.checks.pop(check) for check in mine}

    def _rows(self) -> tuple[ServiceEntry, ...]:
        node = Node(NodeName("node-1"), "172.28.128.3", "dc1")
        return tuple(
            ServiceEntry(node, one.id, one.name, one.address, one.port, one.tags, one.meta)
            for one in self._services.values()
        )

    def _bump(self) -> None:
        self._untold = None
        self._index += 1
        self.changed.notify_all()


class _Reader:
    def __init__(self, registry: FakeRegistry) -> None:
        self._registry = registry
        self._interrupted = False

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        assert isinstance(query, NodeServicesQuery)
        registry = self._registry
        registry._check("read")
        with registry.changed:
            life, connection = registry._life, registry._connection

            def over() -> bool:
                broken = self._interrupted or registry._life != life
                return broken or registry._connection != connection or registry._index > index

            registry.changed.wait_for(over, timeout=wait if index else 0)
            if self._interrupted or registry._life != life:
                raise RegistryUnavailable("the connection to fake://registry was broken")
            rows = registry._rows() if registry._untold is None else registry._untold
            return Reply(rows, registry._index, connection=registry._connection)

    def interrupt(self) -> None:
        with self._registry.changed:
            self._interrupted = True
            self._registry.changed.notify_all()

    def close(self) -> None:
        pass

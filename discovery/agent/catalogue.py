"""What Consul's servers would know: nodes, their services and checks, and when each answer last changed.

    node "web-1" ── services  id -> Row[Registration]
                 └─ checks    id -> Row[CheckRow]      of the node, or of one of its services

Laws:
- Pure: no clock, no I/O, no threads. The caller holds a lock where there are several.
- ``index`` only grows. The index of a topic is that of its last change, so it never runs backwards while
  the agent lives, and a reader that compares it misses nothing.
- Writing what is already there changes nothing: no index moves and nobody wakes.
- Names of nodes and services are compared by ``names.fold`` and kept as they were written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from discovery.agent import topics
from discovery.agent.topics import Topic
from discovery.model import CheckID, Node, NodeName, Registration, ServiceID, ServiceName
from discovery.names import fold

__all__ = ["Catalogue", "CheckRow", "Instance", "Row"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Row(Generic[_T]):
    """A value of the catalogue, with the indexes at which it was created and last modified."""

    value: _T
    created: int
    modified: int


_NODE: Final = ServiceID("")


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class CheckRow:
    """The state of one check, with all that Consul tells of it (clients need but ``model.HealthCheck``)."""

    node: NodeName
    """As it was written with the check: Consul does not follow a change of its case."""
    id: CheckID
    name: str
    status: str = "critical"
    """Consul stores any text that is written to the catalogue directly; agents write the three statuses."""
    notes: str = ""
    output: str = ""
    service_id: ServiceID = _NODE
    """Empty for a check of the whole node."""
    service_name: str = ""
    service_tags: tuple[str, ...] = ()
    type: str = ""
    interval: str = ""
    timeout: str = ""
    definition: Mapping[str, Any] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True)
class Instance:
    """One service of one node, with the checks that decide its health: its node's first, then its own."""

    node: Row[Node]
    service: Row[Registration]
    checks: tuple[Row[CheckRow], ...]


@dataclass(slots=True)
class _Record:
    """One node and what is on it."""

    node: Row[Node]
    services: dict[ServiceID, Row[Registration]] = field(default_factory=dict)
    checks: dict[CheckID, Row[CheckRow]] = field(default_factory=dict)

    def checks_by_service(self) -> dict[ServiceID, list[Row[CheckRow]]]:
        """Return the checks of each service, and under an empty id those of the node, all in order."""
        found: dict[ServiceID, list[Row[CheckRow]]] = {}
        for _, row in sorted(self.checks.items()):
            found.setdefault(row.value.service_id, []).append(row)
        return found


class Catalogue:
    """All nodes of the data centre, as they were written."""

    def __init__(self) -> None:
        self.index: int = 1  # Consul: "Blocking Queries": an index is at least 1
        self._records: dict[str, _Record] = {}
        self._changed_at: dict[Topic, int] = {}
        self._touched: set[Topic] = set()

    # --- who wakes

    def index_of(self, topic: Topic) -> int:
        """Return the index at which the answers to *topic* last changed; at least 1."""
        return self._changed_at.get(topic, 1)

    def touch(self, *topics: Topic) -> int:
        """Advance the index, note it for *topics*, and return it."""
        self.index += 1
        self._changed_at.update(dict.fromkeys(topics, self.index))
        self._touched.update(topics)
        return self.index

    def take_touched(self) -> frozenset[Topic]:
        """Return the topics touched since the last call: those who wait on them are to be woken."""
        touched = frozenset(self._touched)
        self._touched.clear()
        return touched

    # --- questions; every answer is in the order of names and ids, as Consul's

    def nodes(self) -> list[Row[Node]]:
        return [record.node for record in self._sorted()]

    def node(self, node: str) -> Row[Node] | None:
        record = self._records.get(fold(node))
        return record.node if record else None

    def services_of(self, node: str) -> Mapping[ServiceID, Row[Registration]]:
        record = self._records.get(fold(node))
        return dict(sorted(record.services.items())) if record else {}

    def checks_of(self, node: str) -> list[Row[CheckRow]]:
        record = self._records.get(fold(node))
        return sorted(record.checks.values(), key=lambda row: row.value.id) if record else []

    def names(self) -> dict[ServiceName, tuple[str, ...]]:
        """Return every service name, as written, with the tags of all its instances."""
        tags: dict[ServiceName, dict[str, None]] = {}
        for record in self._sorted():
            for row in record.services.values():
                tags.setdefault(row.value.name, {}).update(dict.fromkeys(row.value.tags))
        return {name: tuple(tags[name]) for name in sorted(tags)}

    def instances(self, service: str) -> list[Instance]:
        wanted = fold(service)
        found = []
        for record in self._sorted():
            rows = [row for row in record.services.values() if fold(row.value.name) == wanted]
            checks = record.checks_by_service() if rows else {}
            of_node = checks.get(_NODE, [])
            for row in sorted(rows, key=lambda row: row.value.id):
                found.append(Instance(record.node, row, (*of_node, *checks.get(row.value.id, []))))
        return found

    def checks_named(self, service: str) -> list[Row[CheckRow]]:
        """Return the checks of the instances of *service*."""
        wanted = fold(service)
        return [row for row in self.all_checks() if fold(row.value.service_name) == wanted != ""]

    def all_checks(self) -> Iterator[Row[CheckRow]]:
        for record in self._sorted():
            for _, row in sorted(record.checks.items()):
                yield row

    # --- changes

    def put_node(self, node: Node) -> None:
        """Add or change *node*. One that comes back under its id with another name replaces the old one."""
        if node.id:
            for other in list(self._records.values()):
                if other.node.value.id == node.id and fold(other.node.value.name) != fold(node.name):
                    self.drop_node(other.node.value.name)
        record = self._records.get(fold(node.name))
        if record is None:
            index = self.touch(topics.NODES, topics.node_services(node.name))
            self._records[fold(node.name)] = _Record(Row(node, index, index))
        elif record.node.value != node:
            names = [row.value.name for row in record.services.values()]
            index = self.touch(
                topics.NODES,
                topics.node_services(node.name),
                *map(topics.instances, names),
                *map(topics.health, names),
            )
            record.node = Row(node, record.node.created, index)

    def put_service(self, node: str, service: Registration) -> None:
        """Add or change *service* (its checks apart) on *node*, which exists."""
        record = self._records[fold(node)]
        service = replace(service, checks=())
        old = record.services.get(service.id)
        if old is not None and old.value == service:
            return
        names = {service.name} if old is None else {service.name, old.value.name}
        index = self.touch(
            topics.NAMES,
            topics.node_services(node),
            *map(topics.instances, names),
            *map(topics.health, names),
        )
        record.services[service.id] = Row(service, old.created if old else index, index)

    def put_check(self, check: CheckRow) -> None:
        """Add or change *check*. Its node exists, and its service, which gives it its name and tags.

        Consul takes them over when the check is written, and only then (state store: "ensureCheck").
        """
        record = self._records[fold(check.node)]
        if check.service_id:
            service = record.services[check.service_id].value
            check = replace(check, service_name=service.name, service_tags=service.tags)
        old = record.checks.get(check.id)
        if old is not None and old.value == check:
            return
        index = self.touch(
            *self._topics_of(record, check), *(self._topics_of(record, old.value) if old else ())
        )
        record.checks[check.id] = Row(check, old.created if old else index, index)

    def drop_check(self, node: str, check_id: CheckID) -> None:
        record = self._records.get(fold(node))
        if record is not None and (old := record.checks.pop(check_id, None)) is not None:
            self.touch(*self._topics_of(record, old.value))

    def drop_service(self, node: str, service_id: ServiceID) -> None:
        """Remove a service of *node* with its checks."""
        record = self._records.get(fold(node))
        if record is None or service_id not in record.services:
            return
        for check_id in [key for key, row in record.checks.items() if row.value.service_id == service_id]:
            self.drop_check(node, check_id)
        name = record.services.pop(service_id).value.name
        self.touch(topics.NAMES, topics.node_services(node), topics.instances(name), topics.health(name))

    def drop_node(self, node: str) -> None:
        """Remove *node* with all that is on it."""
        record = self._records.get(fold(node))
        if record is None:
            return
        for service_id in list(record.services):
            self.drop_service(node, service_id)
        for check_id in list(record.checks):
            self.drop_check(node, check_id)
        del self._records[fold(node)]
        self.touch(topics.NODES, topics.node_services(node))

    # --- inside

    def _sorted(self) -> list[_Record]:
        return [self._records[key] for key in sorted(self._records)]

    def _topics_of(self, record: _Record, check: CheckRow) -> list[Topic]:
        """Return what a change of *check* touches (the table in ``topics``)."""
        touched = [
            topics.node_checks(record.node.value.name),
            topics.state(check.status),
            topics.state("any"),
        ]
        if not check.service_id:
            return [*touched, *(topics.health(row.value.name) for row in record.services.values())]
        touched.append(topics.checks(check.service_name))
        # The instance may have taken another name since the check was written; its answer has the check.
        if (service := record.services.get(check.service_id)) is not None:
            touched.append(topics.health(service.value.name))
        return touched

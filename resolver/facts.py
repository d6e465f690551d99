"""What is known: answers to catalogue questions, in the form in which DNS questions use them.

Laws:
- Pure. A fact is replaced whole, never changed.
- A fact that was never learned, one that is stale and one that is fresh are three different things; nothing
  here or above takes one for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from discovery import model
from discovery.model import (
    NamesQuery,
    Node,
    NodeServicesQuery,
    NodesQuery,
    PreparedQuery,
    PreparedResult,
    Reply,
    ServiceEntry,
)
from discovery.names import fold
from resolver import wire
from resolver.wire import Name

__all__ = [
    "AddressesQuery",
    "AliasQuery",
    "Fact",
    "Facts",
    "Nodes",
    "Query",
    "digest",
    "gather_addresses",
    "nothing",
]


@dataclass(frozen=True, slots=True)
class AddressesQuery:
    """Which service has which address, over all nodes; for PTR. The value: instances by address.

    The catalogue has no such question. It is put together from the services of each node.
    """


@dataclass(frozen=True, slots=True)
class AliasQuery:
    """What an upstream says about a host name that is registered as an address. The value: records."""

    name: Name
    """In lower case."""
    type: int

    def to_query(self) -> wire.Query:
        """Return it as a request would carry it."""
        return wire.Query.of(self.name, self.type)


Query = model.Query | AddressesQuery | AliasQuery


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known about one query."""

    value: Any = None
    """As ``digest`` makes it; None: nothing was ever learned."""
    stale: bool = False
    """The catalogue could not be asked whether this is still so."""
    why: str = ""
    """What went wrong when it was asked last."""
    timed_out: bool = False


Facts = Mapping[Query, Fact]


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes of a data centre, by folded name and by address."""

    by_name: Mapping[str, Node]
    by_address: Mapping[str, Node]
    """Addresses as ``normal`` writes them; of nodes with the same one the first."""

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> Nodes:
        by_name: dict[str, Node] = {}
        by_address: dict[str, Node] = {}
        for node in nodes:
            by_name[fold(node.name)] = node
            if address := normal(node.address):
                by_address.setdefault(address, node)
        return cls(by_name, by_address)

    @property
    def dc(self) -> str:
        """The data centre that they say they are in, if any does."""
        return next((node.dc for node in self.by_name.values() if node.dc), "")


_NO_NODES: Final = Nodes({}, {})


def digest(query: model.Query, value: Any) -> Any:
    """Turn what the catalogue answered to *query* into the value of its fact.

    Names become a set of folded names, nodes a ``Nodes``, instances stay as they are. What comes in no order
    is given one: Consul shuffles the results of prepared queries, and a new order is no news.
    """
    if value is None:
        return None
    match query:
        case NamesQuery():
            return frozenset(map(fold, value))
        case NodesQuery():
            return Nodes.of(value) if value else _NO_NODES
        case PreparedQuery():
            if value.ordered:
                return value
            return replace(value, entries=tuple(sorted(value.entries, key=lambda it: (it.node.name, it.id))))
        case _:
            return tuple(value)


def nothing(query: model.Query) -> Any:
    """Return the value of the fact that there is nothing of what *query* asks for."""
    match query:
        case NamesQuery():
            return frozenset()
        case NodesQuery():
            return _NO_NODES
        case PreparedQuery():
            return PreparedResult()
        case _:
            return ()


def _addresses(entries: Iterable[ServiceEntry]) -> dict[str, ServiceEntry]:
    """Return the instances that have an address of their own, by that address; the first counts."""
    found: dict[str, ServiceEntry] = {}
    for entry in entries:
        if address := normal(entry.address):
            found.setdefault(address, entry)
    return found


def gather_addresses(nodes: Iterable[Node], read: Callable[[model.Query], Reply]) -> dict[str, ServiceEntry]:
    """Read the services of each of *nodes*, and return the instances by their addresses.

    Raises:
        DiscoveryError: *read* could not.
    """
    return _addresses(entry for node in nodes for entry in read(NodeServicesQuery(node.name)).value)


def normal(address: str) -> str:
    """Return *address* in the one form in which equal addresses are equal texts; empty if it is none."""
    try:
        return str(ip_address(address))
    except ValueError:
        return ""

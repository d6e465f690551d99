"""Small catalogues, questions and readable answers for the tests of the pure modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dns.flags
import dns.message
import dns.rdatatype

from discovery.model import (
    Address,
    CheckID,
    HealthCheck,
    NamesQuery,
    Node,
    NodeName,
    NodesQuery,
    Query,
    ServiceEntry,
    ServiceID,
    ServiceName,
    ServiceQuery,
    Status,
    Weights,
)
from resolver import wire
from resolver.facts import Fact, digest

SERIAL = 1_700_000_000


def node(name: str = "host-1", address: str = "10.1.0.1", *, dc: str = "dc1", **fields: Any) -> Node:
    return Node(name=NodeName(name), address=address, dc=dc, **fields)


def entry(
    name: str = "web",
    address: str = "",
    port: int = 80,
    *,
    on: Node | None = None,
    tags: Iterable[str] = (),
    status: Status = "passing",
    tagged: Mapping[str, tuple[str, int]] | None = None,
    weights: tuple[int, int] = (1, 1),
) -> ServiceEntry:
    on = on or node()
    return ServiceEntry(
        node=on,
        id=ServiceID(f"{name}-{address or on.name}-{port}"),
        name=ServiceName(name),
        address=address,
        port=port,
        tags=tuple(tags),
        tagged_addresses={key: Address(*value) for key, value in (tagged or {}).items()},
        weights=Weights(*weights),
        checks=(HealthCheck(CheckID("alive"), "alive", status),),
    )


def facts(
    *entries: ServiceEntry, nodes: Iterable[Node] = (), dc: str | None = None, stale: str = ""
) -> dict[Query, Fact]:
    """What a resolver knows that follows every service of a catalogue with these instances."""
    found: dict[Query, Any] = {}
    by_name: dict[str, list[ServiceEntry]] = {}
    for one in entries:
        by_name.setdefault(one.name.lower(), []).append(one)
    for name, group in by_name.items():
        found[ServiceQuery(ServiceName(name), dc)] = tuple(group)
    found[NamesQuery(dc)] = {one.name: one.tags for one in entries}
    every_node = {one.name: one for one in [node(), *(one.node for one in entries), *nodes]}
    found[NodesQuery(dc)] = tuple(every_node.values())
    return {q: Fact(digest(q, value), stale=bool(stale), why=stale) for q, value in found.items()}


def packet(
    name: str,
    qtype: str = "A",
    *,
    edns: int | None = None,
    rd: bool = True,
    ident: int = 1,
    **options: Any,
) -> bytes:
    """A request as dnspython writes it."""
    message = dns.message.make_query(name, qtype, use_edns=None, **options)
    if edns is not None:
        message.use_edns(0, payload=edns)
    if not rd:
        message.flags &= ~dns.flags.RD
    message.id = ident
    return message.to_wire()


def query(name: str, qtype: str = "A", **options: Any) -> wire.Query:
    parsed = wire.parse(packet(name, qtype, **options))
    assert isinstance(parsed, wire.Query)
    return parsed


def lines(section: Iterable[Any]) -> list[str]:
    """The records of a section of dnspython's, one sorted line each: ``owner ttl TYPE data``."""
    return sorted(
        f"{rrset.name} {rrset.ttl} {dns.rdatatype.to_text(rrset.rdtype)} {record}"
        for rrset in section
        for record in rrset
    )

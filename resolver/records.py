"""Resource records and the answers made of them.

Laws:
- Pure. Data is in wire form from the start, so that rendering is concatenation.
- Names inside data are written whole: RFC 2782 forbids compression in SRV, and elsewhere it saves little.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from discovery.model import Node, ServiceEntry
from discovery.names import fold
from resolver import wire
from resolver.facts import Query
from resolver.wire import Malformed, Name, name_from_text, name_to_wire

__all__ = ["Choice", "Found", "Record", "Soa", "host_record", "meta_records", "pointer", "soa_record", "srv"]

_PRIORITY = 1  # of SRV records: Consul has no notion of backup instances


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record."""

    owner: Name
    type: int
    ttl: int
    """Seconds."""
    data: bytes
    target: bytes = b""
    """The domain name that ``data`` ends with, if it does: later owners may point at it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one instance contributes to an answer; rotation and limits take it or leave it as a whole."""

    answer: tuple[Record, ...]
    additional: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """The answer, or an empty one with the SOA that proves it (RFC 2308)."""

    rcode: int = wire.NOERROR
    choices: tuple[Choice, ...] = ()
    authority: tuple[Record, ...] = ()
    limit: int = 0
    """At most this many choices; 0: as many as fit."""
    ordered: bool = False
    """The best choice comes first: they are given in this order, not in turn."""
    uses: tuple[Query, ...] = ()
    """The facts behind it: when one changes, the answer is to be made anew."""
    stale: str = ""
    """Why some of them are stale; empty when all are fresh."""
    lasting: bool = False
    """It belongs to a name of the catalogue, of which there are finitely many: worth keeping prepared."""
    left_out: tuple[tuple[ServiceEntry, str], ...] = ()
    """The instances that are not in the answer, and why."""


@dataclass(frozen=True, slots=True)
class Soa:
    """The timers of a zone in seconds (Consul: ``dns_config.soa``)."""

    refresh: int = 3600
    retry: int = 600
    expire: int = 86_400
    min_ttl: int = 0
    """How long a negative answer may be kept. 0: a service is reachable the moment it is registered."""


def host_record(owner: Name, host: str, ttl: int) -> Record | None:
    """Return the A or AAAA record for *host*, a CNAME where it is a name, None where it is neither."""
    try:
        address = ip_address(host)
    except ValueError:
        try:
            target = name_from_text(host)
        except Malformed:
            return None
        return pointer(owner, wire.CNAME, ttl, target) if target else None
    return Record(owner, wire.A if address.version == 4 else wire.AAAA, ttl, address.packed)


def pointer(owner: Name, rtype: int, ttl: int, target: Name) -> Record:
    """Return a record whose data is a name: CNAME, NS or PTR."""
    data = name_to_wire(target)
    return Record(owner, rtype, ttl, data, target=data)


def srv(owner: Name, ttl: int, weight: int, port: int, target: Name) -> Record:
    """Return an SRV record (RFC 2782); weight 0 is legal."""
    name = name_to_wire(target)
    data = b"".join(number.to_bytes(2) for number in (_PRIORITY, weight, port)) + name
    return Record(owner, wire.SRV, ttl, data, target=name)


def meta_records(owner: Name, node: Node, ttl: int) -> tuple[Record, ...]:
    """Return the node's meta as TXT, ``key=value`` by RFC 1464.

    Consul: a key that begins with ``rfc1035-`` gives the bare value.
    """
    records = []
    for key, value in sorted(node.meta.items()):
        text = value if fold(key).startswith("rfc1035-") else f"{_escape_1464(key)}={value}"
        raw = text.encode()
        # RFC 1035 section 3.3.14: one or more strings of at most 255 octets.
        pieces = [raw[at : at + 255] for at in range(0, len(raw), 255)] or [b""]
        data = b"".join(bytes((len(piece),)) + piece for piece in pieces)
        records.append(Record(owner, wire.TXT, ttl, data))
    return tuple(records)


def _escape_1464(key: str) -> str:
    """Quote what RFC 1464 section 2 says an attribute name must quote."""
    return "".join(f"`{char}" if char in "=`" else char for char in key)


def soa_record(zone: Name, server: Name, soa: Soa, serial: int) -> Record:
    """Return the SOA of *zone*; *serial* is seconds since 1970, as Consul's."""
    timers = (serial & 0xFFFFFFFF, soa.refresh, soa.retry, soa.expire, soa.min_ttl)
    data = (
        name_to_wire(server)
        + name_to_wire(Name((b"hostmaster", *zone)))
        + b"".join(number.to_bytes(4) for number in timers)
    )
    # RFC 2308 section 3: the TTL of a negative answer is the lesser of SOA TTL and MINIMUM; here they agree.
    return Record(zone, wire.SOA, soa.min_ttl, data)

"""Consul's DNS rules: a question and what is known of the catalogue -> records.

    resolve(question, facts, settings) ──> Found      records, or the proof that there are none
                                       ├─> Need       a catalogue question to ask first
                                       ├─> Unknown    the catalogue cannot be asked, and nothing is known
                                       └─> None       not ours: forward it

Laws:
- Pure. ``facts`` is a mapping from catalogue questions to what is known; nothing here waits.
- What is stale may confirm, never deny: without a fresh word from the catalogue a name is at worst unknown
  (SERVFAIL), because a wrong NXDOMAIN makes a client give up on a service that runs.
- An existing name answers every type: NODATA, never NXDOMAIN, or musl fails the whole lookup when AAAA is
  missing.
- Text is compared folded (RFC 4343); targets keep the case that was registered.

The rules are Consul's ("DNS interface"); a comment that begins with "Unlike Consul" marks where following it
would harm a client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType
from typing import Any, Final

from discovery.model import (
    NamesQuery,
    Node,
    NodesQuery,
    Query,
    ServiceEntry,
    ServiceName,
    ServiceQuery,
)
from discovery.names import fold
from resolver import wire
from resolver.wire import Malformed, Name, name_to_text, name_to_wire

__all__ = ["Choice", "Fact", "Found", "Need", "Record", "Soa", "Unknown", "ZoneSettings", "digest", "resolve"]

_CONSUL: Final = Name((b"consul",))
_NO_TTLS: Final[Mapping[str, float]] = MappingProxyType({})
_KEYWORDS: Final = frozenset({"service", "connect", "ingress", "virtual", "node", "query", "addr"})
_LOCALHOST_TTL: Final = 86_400  # s; it never changes
_SPECIAL_NEGATIVE_TTL: Final = 10_800  # s; these names will never exist (as unbound answers them)
_REFUSED_TYPES: Final = frozenset({wire.AXFR, wire.IXFR})
_FIXED_PRIORITY: Final = 1  # of SRV records: Consul has no notion of backup instances


@dataclass(frozen=True, slots=True)
class Soa:
    """The zone's SOA timers in seconds (Consul: ``dns_config.soa``)."""

    refresh: int = 3600
    retry: int = 600
    expire: int = 86_400
    min_ttl: int = 0
    """How long a negative answer may be kept. 0: a service is reachable the moment it is registered."""


@dataclass(frozen=True, slots=True)
class ZoneSettings:
    """What Consul's agent configuration says about answers; its names and defaults."""

    domain: Name = _CONSUL
    alt_domain: Name | None = None
    datacenter: str | None = None
    """The agent's own; None: whatever the catalogue's nodes say."""
    service_ttl: Mapping[str, float] = field(default_factory=lambda: _NO_TTLS)
    """Seconds by service name, by ``prefix*``, or ``*`` for all others; 0 without any."""
    node_ttl: int = 0
    soa: Soa = Soa()
    only_passing: bool = False
    """Leave out instances in warning state too."""
    a_record_limit: int = 0
    """At most this many instances in an answer to A, AAAA or ANY; 0: no limit."""
    node_meta_txt: bool = True
    """Tell a node's meta as TXT in the additional section."""
    translate_wan_addrs: bool = False
    """Answer with ``wan`` addresses for instances of other data centres."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known about one catalogue question."""

    value: Any = None
    """As ``digest`` makes it; None: nothing was ever learned."""
    stale: bool = False
    """The catalogue could not be asked whether this is still so."""
    why: str = ""
    """What went wrong when it was asked last."""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record; the data is in wire form."""

    owner: Name
    type: int
    ttl: int
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
    uses: frozenset[Query] = frozenset()
    """The facts behind it: when one changes, the answer is to be made anew."""
    stale: str = ""
    """Why some of them are stale; empty when all are fresh."""
    lasting: bool = False
    """It belongs to a name of the catalogue, of which there are finitely many: worth keeping prepared."""
    left_out: tuple[tuple[ServiceEntry, str], ...] = ()
    """The instances that are not in the answer because of their checks or tags, and why."""


@dataclass(frozen=True, slots=True)
class Need:
    """A catalogue question that has to be asked first."""

    query: Query


@dataclass(frozen=True, slots=True)
class Unknown:
    """The catalogue cannot be asked and nothing is known: SERVFAIL, with the reason (RFC 8914)."""

    why: str
    timed_out: bool
    uses: frozenset[Query]


Facts = Mapping[Query, Fact]
Outcome = Found | Need | Unknown


def digest(query: Query, value: Any) -> Any:
    """Turn what the catalogue answered to *query* into what questions are asked of here.

    Names become a set of folded names, nodes a mapping by folded name, instances stay as they are.
    """
    if value is None:
        return None
    match query:
        case NamesQuery():
            return frozenset(map(fold, value))
        case NodesQuery():
            return {fold(node.name): node for node in value}
        case ServiceQuery():
            return tuple(value)


def resolve(query: wire.Query, facts: Facts, settings: ZoneSettings, serial: int) -> Outcome | None:
    """Answer *query* from *facts*; None when its name lies in no zone of ours.

    Args:
        serial: of the SOA; seconds since 1970, as Consul's.
    """
    labels = tuple(label.lower() for label in query.name)
    for domain in filter(None, (settings.domain, settings.alt_domain)):
        if labels[-len(domain) :] == tuple(label.lower() for label in domain):
            inside = _Zone(query, facts, settings, serial, domain)
            return inside.answer(labels[: -len(domain)])
    return _special(query, labels, serial)


# --- names that have one meaning everywhere -------------------------------------------------------------


def _special(query: wire.Query, labels: tuple[bytes, ...], serial: int) -> Found | None:
    """Answer the names that must not leave this host, as they mean nothing elsewhere."""
    match labels[-1:]:
        case (b"localhost",):  # RFC 6761 section 6.3: always loopback, no search elsewhere
            address = {wire.A: "127.0.0.1", wire.AAAA: "::1"}.get(query.type)
            if address:
                record = Record(query.name, query.type, _LOCALHOST_TTL, ip_address(address).packed)
                return Found(choices=(Choice((record,)),))
            rcode = wire.NOERROR
        case (b"invalid",) | (b"onion",):  # RFC 6761 section 6.4, RFC 7686 section 2 (4)
            rcode = wire.NXDOMAIN
        case _:
            return None
    top = Name(query.name[-1:])
    soa = _soa_record(top, Name((b"localhost",)), Soa(min_ttl=_SPECIAL_NEGATIVE_TTL), serial)
    return Found(rcode, authority=(soa,))


def _soa_record(zone: Name, server: Name, soa: Soa, serial: int) -> Record:
    timers = (serial & 0xFFFFFFFF, soa.refresh, soa.retry, soa.expire, soa.min_ttl)
    data = (
        name_to_wire(server)
        + name_to_wire(Name((b"hostmaster", *zone)))
        + b"".join(number.to_bytes(4) for number in timers)
    )
    # RFC 2308 section 3: the TTL of a negative answer is the lesser of SOA TTL and MINIMUM; here they agree.
    return Record(zone, wire.SOA, soa.min_ttl, data)


# --- which instances -----------------------------------------------------------------------------------


def service_and_tag(parts: tuple[str, ...]) -> tuple[str, str]:
    """Split what stands left of the keyword into the service's name and the tag to filter by, if any."""
    match parts:
        case (service, proto) if service.startswith("_") and proto.startswith("_"):
            # RFC 2782 notation. ``_tcp`` is what everybody writes, so Consul takes it for no filter.
            return service[1:], "" if proto == "_tcp" else proto[1:]
    # Consul: all labels left of the name, dots and all, are one tag.
    return parts[-1], ".".join(parts[:-1])


def rejection(entry: ServiceEntry, tag: str, settings: ZoneSettings) -> str:
    """Say why *entry* is not to be given to clients; empty when it is.

    Consul: critical checks, the node's included, take an instance out, and warning ones only on request.
    Maintenance is a critical check with a reserved name, so it needs no rule of its own.
    """
    if tag and tag not in map(fold, entry.tags):
        return f"it has no tag {tag!r} (tags: {', '.join(entry.tags) or 'none'})"
    bad = {"critical", "warning"} if settings.only_passing else {"critical"}
    for check in entry.checks:
        if check.status in bad:
            whose = "check" if check.service_id else "node check"
            said = " ".join(check.output.split())[:120]
            return f"{whose} {check.id!r} is {check.status}" + (f": {said}" if said else "")
    return ""


# --- our zone ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Zone:
    """One question on its way to an answer."""

    query: wire.Query
    facts: Facts
    settings: ZoneSettings
    serial: int
    domain: Name
    """The domain asked under. Unlike Consul 1.8, targets are given under it too: a client that knows only the
    alternative domain could not resolve others."""
    uses: set[Query] = field(default_factory=set)
    stale: str = ""
    left_out: list[tuple[ServiceEntry, str]] = field(default_factory=list)

    def answer(self, labels: tuple[bytes, ...]) -> Outcome:
        """Find the rule for the name; *labels* are folded and stripped of the domain."""
        if self.query.type in _REFUSED_TYPES:
            return Found(wire.NOTIMP)
        try:
            texts = tuple(map(_to_text, labels))
        except Malformed:  # no name of the catalogue can be meant
            return self.nothing()
        if self.query.type == wire.SOA:
            return Found(choices=(Choice((self.soa(),)),), lasting=not labels)

        # Consul: the first keyword from the right decides, so ``node.service.consul`` is a service "node" and
        # ``web.service.node.consul`` is a node "web.service".
        for at in range(len(texts) - 1, -1, -1):
            if texts[at] in _KEYWORDS:
                return self.keyword(texts[at], texts[:at], texts[at + 1 :])
            if self.query.type == wire.SRV and texts[at].startswith("_"):
                # ``_web._tcp.consul``: for SRV the keyword may be left out.
                return self.keyword("service", texts[: at + 1], texts[at + 1 :])
        # Unlike Consul: names exist below the apex and below a data centre, so these exist too (RFC 8020).
        if not texts or (len(texts) == 1 and texts[0] == fold(self.own_dc())):
            return self.empty()
        return self.nothing()

    def keyword(self, keyword: str, parts: tuple[str, ...], suffixes: tuple[str, ...]) -> Outcome:
        """Answer ``<parts>.<keyword>.<suffixes>``."""
        match suffixes:
            case ():
                dc = None
            case (name,) | (name, "dc"):  # newer releases take ``.D.dc``; 1.8 knew only ``.D``
                dc = None if name == fold(self.own_dc()) else name
            case _:
                return self.nothing()
        if not parts:
            return self.empty()  # an empty non-terminal: names exist below it (RFC 8020)
        match keyword:
            case "service":
                return self.service(parts, dc)
            case "node":
                return self.node(".".join(parts), dc)
            case "addr":
                return self.address(parts)
            case _:  # connect, ingress, virtual, query: this catalogue has none of them
                return self.nothing()

    # The kinds of name ------------------------------------------------------------------------------------

    def service(self, parts: tuple[str, ...], dc: str | None) -> Outcome:
        """``[tag.]name.service`` and RFC 2782's ``_name._proto.service``."""
        name, tag = service_and_tag(parts)
        query = ServiceQuery(ServiceName(name), dc)
        fact = self.facts.get(query)
        if fact is None:
            return self.unfollowed(query)
        self.use(query, fact)
        if fact.value is None:
            return self.unknown(fact)
        entries = []
        for entry in fact.value:
            if why := rejection(entry, tag, self.settings):
                self.left_out.append((entry, why))
            else:
                entries.append(entry)
        if not entries:
            return self.unknown(fact) if fact.stale else self.nothing()
        return self.instances(entries, self.service_ttl(name), remote=dc is not None)

    def unfollowed(self, query: ServiceQuery) -> Outcome:
        """Decide by the list of names whether *query* is worth asking: a flood of random names is not."""
        names = NamesQuery(query.dc)
        fact = self.facts.get(names)
        if fact is None:
            return Need(names)
        if fact.value is not None and query.name in fact.value:
            return Need(query)
        self.use(names, fact)
        return self.unknown(fact) if fact.stale or fact.value is None else self.nothing()

    def node(self, name: str, dc: str | None) -> Outcome:
        """``name.node``: the node's address whatever its health, and its meta."""
        query = NodesQuery(dc)
        fact = self.facts.get(query)
        if fact is None:
            return Need(query)
        self.use(query, fact)
        if fact.value is None:
            return self.unknown(fact)
        node = fact.value.get(name)
        if node is None:
            return self.unknown(fact) if fact.stale else self.nothing()
        ttl = self.settings.node_ttl
        host = self.node_address(node, self.query.type, remote=dc is not None)
        addresses = self.host_records(self.query.name, host, ttl)
        meta = self.meta_records(self.query.name, node, ttl)
        additional: tuple[Record, ...]
        match self.query.type:
            case wire.TXT:
                answer, additional = meta, ()
            case wire.ANY:
                answer, additional = (*addresses, *meta), ()
            case _:
                answer = tuple(r for r in addresses if r.type in (self.query.type, wire.CNAME))
                additional = meta if self.settings.node_meta_txt and answer else ()
        if not answer:
            return self.empty(lasting=True)
        return self.found((Choice(answer, additional),))

    def address(self, parts: tuple[str, ...]) -> Outcome:
        """``<hex>.addr``: the address that the name itself spells."""
        if len(parts) != 1:
            return self.nothing()
        try:
            packed = bytes.fromhex(parts[0])
        except ValueError:
            return self.nothing()
        if len(packed) not in (4, 16) or len(parts[0]) != 2 * len(packed):
            return self.nothing()
        rtype = wire.A if len(packed) == 4 else wire.AAAA
        if self.query.type not in (rtype, wire.ANY):
            # Unlike Consul, which answers A with an AAAA record: a stub resolver takes that for garbage.
            return self.empty()
        return Found(choices=(Choice((Record(self.query.name, rtype, self.settings.node_ttl, packed),)),))

    def instances(self, entries: Iterable[ServiceEntry], ttl: int, *, remote: bool) -> Outcome:
        """One choice per distinct address, or per distinct (node, address, port) for SRV."""
        choices: dict[object, Choice] = {}
        aliases: dict[object, Choice] = {}
        limit = self.settings.a_record_limit
        for entry in entries:
            if self.query.type == wire.SRV:
                own, host, port = self.entry_address(entry, wire.SRV, remote=remote)
                key: object = (entry.node.name, host, port)
                if key not in choices:
                    choices[key] = self.srv(entry, host, port, ttl, own=own)
                limit = 0  # Consul: a_record_limit does not apply
            else:
                _, host, _ = self.entry_address(entry, self.query.type, remote=remote)
                for record in self.host_records(self.query.name, host, ttl):
                    if record.type == wire.CNAME:
                        aliases[record.data] = Choice((record,))
                    elif self.query.type in (record.type, wire.ANY):
                        choices[record.data] = Choice((record,))
        if not choices and aliases and self.query.type in (wire.A, wire.AAAA, wire.ANY, wire.CNAME):
            # A name has one CNAME or none, and nothing beside it (RFC 1034 section 3.6.2).
            return self.found(tuple(aliases.values()), limit=1)
        if not choices:
            return self.empty(lasting=self.query.type in wire.KNOWN_TYPES)
        return self.found(tuple(choices.values()), limit=limit)

    def srv(self, entry: ServiceEntry, host: str, port: int, ttl: int, *, own: bool) -> Choice:
        """The SRV record of one instance, with what its target resolves to (RFC 2782).

        Args:
            own: *host* is the instance's own address; else its node's, which is then the target.
        """
        node, dc = entry.node, (entry.node.dc or self.own_dc()).encode()
        try:
            address: IPv4Address | IPv6Address | None = ip_address(host)
        except ValueError:
            address = None
        try:
            node_name: Name | None = Name((*wire.name_from_text(node.name), b"node", dc, *self.domain))
        except Malformed:  # DNS cannot carry the node's name; the address alone still can be told
            node_name = None
        if address is None:
            try:
                target = wire.name_from_text(host)  # somebody else's name: they resolve it
            except Malformed:
                return Choice(())
        elif own or node_name is None:
            target = Name((address.packed.hex().encode(), b"addr", dc, *self.domain))
        else:
            target = node_name
        additional: tuple[Record, ...] = ()
        if address is not None:
            rtype = wire.A if address.version == 4 else wire.AAAA
            additional = (Record(target, rtype, ttl, address.packed),)
        if self.settings.node_meta_txt and node_name is not None:
            additional += self.meta_records(node_name, node, ttl)
        # RFC 2782: the target is not compressed, and weight 0 is legal.
        encoded = name_to_wire(target)
        data = b"".join(number.to_bytes(2) for number in (_FIXED_PRIORITY, entry.weight, port)) + encoded
        return Choice((Record(self.query.name, wire.SRV, ttl, data, target=encoded),), additional)

    # The rules behind them --------------------------------------------------------------------------------

    def service_ttl(self, name: str) -> int:
        """Consul: the exact name, then the longest ``prefix*``."""
        ttls = self.settings.service_ttl
        if name in ttls:
            return int(ttls[name])
        prefixes = [key[:-1] for key in ttls if key.endswith("*") and name.startswith(key[:-1])]
        return int(ttls[max(prefixes, key=len) + "*"]) if prefixes else 0

    def entry_address(self, entry: ServiceEntry, qtype: int, *, remote: bool) -> tuple[bool, str, int]:
        """Where one instance is: (has an address of its own, host, port)."""
        port = entry.port
        host = entry.address
        if remote and self.settings.translate_wan_addrs and (wan := entry.tagged_addresses.get("wan")):
            port = wan.port or port
        for key in self.address_keys(qtype, remote=remote):
            if tagged := entry.tagged_addresses.get(key):
                host = tagged.host
                break
        return bool(host), host or self.node_address(entry.node, qtype, remote=remote), port

    def node_address(self, node: Node, qtype: int, *, remote: bool) -> str:
        for key in self.address_keys(qtype, remote=remote):
            if tagged := node.tagged_addresses.get(key):
                return tagged
        return node.address

    def address_keys(self, qtype: int, *, remote: bool) -> tuple[str, ...]:
        """The tagged addresses that are preferred to the plain one, best first."""
        if remote and self.settings.translate_wan_addrs:
            match qtype:
                case wire.A:
                    return ("wan_ipv4", "wan")
                case wire.AAAA:
                    return ("wan_ipv6", "wan")
                case _:
                    return ("wan", "wan_ipv6", "wan_ipv4")
        match qtype:
            case wire.A:
                return ("lan_ipv4",)
            case wire.AAAA:
                return ("lan_ipv6",)
            case _:
                return ("lan_ipv6", "lan_ipv4")

    def host_records(self, owner: Name, host: str, ttl: int) -> tuple[Record, ...]:
        """The A or AAAA record of *host*, or a CNAME where it is a name."""
        try:
            address = ip_address(host)
        except ValueError:
            try:
                target = name_to_wire(wire.name_from_text(host))
            except Malformed:
                return ()
            return (Record(owner, wire.CNAME, ttl, target, target=target),) if len(target) > 1 else ()
        return (Record(owner, wire.A if address.version == 4 else wire.AAAA, ttl, address.packed),)

    def meta_records(self, owner: Name, node: Node, ttl: int) -> tuple[Record, ...]:
        """The node's meta as TXT, ``key=value`` by RFC 1464.

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

    def own_dc(self) -> str:
        """The agent's data centre: configured, else what its nodes say."""
        if self.settings.datacenter:
            return self.settings.datacenter
        fact = self.facts.get(NodesQuery())
        nodes: Mapping[str, Node] = (fact and fact.value) or {}
        return next((node.dc for node in nodes.values() if node.dc), "dc1")

    # Endings ----------------------------------------------------------------------------------------------

    def use(self, query: Query, fact: Fact) -> None:
        self.uses.add(query)
        if fact.stale:
            self.stale = self.stale or fact.why or "the catalogue cannot be asked"

    def found(self, choices: tuple[Choice, ...], *, limit: int = 0) -> Found:
        return self.end(
            choices=tuple(choice for choice in choices if choice.answer), limit=limit, lasting=True
        )

    def empty(self, *, lasting: bool = False) -> Found:
        """NODATA: the name exists and has no such record."""
        return self.end(authority=(self.soa(),), lasting=lasting)

    def nothing(self) -> Found:
        """NXDOMAIN: neither the name nor anything below it exists."""
        return self.end(rcode=wire.NXDOMAIN, authority=(self.soa(),))

    def end(self, **fields: Any) -> Found:
        return Found(**fields, uses=frozenset(self.uses), stale=self.stale, left_out=tuple(self.left_out))

    def unknown(self, fact: Fact) -> Unknown:
        why = fact.why or "the catalogue cannot be asked"
        return Unknown(why, fact.timed_out, frozenset(self.uses))

    def soa(self) -> Record:
        return _soa_record(self.domain, Name((b"ns", *self.domain)), self.settings.soa, self.serial)


def _to_text(label: bytes) -> str:
    """Return a folded label as text.

    Raises:
        Malformed: it holds what no name of the catalogue can hold here: a dot inside a label would be taken
            for the end of one, and octets beyond ASCII have no agreed meaning.
    """
    if b"." in label or not label.isascii():
        raise Malformed(f"the label {name_to_text(Name((label,)))} names nothing in the catalogue")
    return label.decode("ascii")


def _escape_1464(key: str) -> str:
    """Quote what RFC 1464 section 2 says an attribute name must quote."""
    return "".join(f"`{char}" if char in "=`" else char for char in key)

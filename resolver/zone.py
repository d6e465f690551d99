"""Consul's DNS rules: a question and what is known of the catalogue -> records.

    resolve(question, facts, settings) ──> Found      records, or the proof that there are none
                                       ├─> Need       a question to ask first, of the catalogue or an upstream
                                       ├─> Unknown    the catalogue cannot be asked, and nothing is known
                                       └─> None       not ours: forward it

Laws:
- Pure. ``facts`` is a mapping from questions to what is known; nothing here waits.
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
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from sys import intern
from types import MappingProxyType
from typing import Any, Final

from discovery.model import (
    ConnectQuery,
    IngressQuery,
    NamesQuery,
    Node,
    NodesQuery,
    PreparedQuery,
    PreparedResult,
    ServiceEntry,
    ServiceName,
    ServiceQuery,
)
from discovery.names import fold
from resolver import records, wire
from resolver.facts import AddressesQuery, AliasQuery, Fact, Facts, Nodes, Query
from resolver.records import Choice, Found, Record, Soa, host_record, pointer
from resolver.special import address_of_reverse, special
from resolver.wire import Malformed, Name, name_from_text, name_to_text, name_to_wire

__all__ = ["Need", "Outcome", "Unknown", "ZoneSettings", "resolve"]

_CONSUL: Final = Name((b"consul",))
_NO_TTLS: Final[Mapping[str, float]] = MappingProxyType({})
_KEYWORDS: Final = frozenset({"service", "connect", "ingress", "virtual", "node", "query", "addr"})
_TRANSFERS: Final = frozenset({wire.AXFR, wire.IXFR})
_SERVERS: Final = ServiceQuery(ServiceName("consul"))
_VIRTUAL: Final = "consul-virtual"  # Consul: the tagged address of who is reached by a virtual one
_MAX_SERVERS: Final = 3  # Consul: more in NS answers help nobody
_MAX_ALIAS_RECORDS: Final = 5  # Consul: of what a host name resolves to
_MAX_UINT16: Final = 65_535  # of a port and a weight (RFC 2782)


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
    soa: Soa = field(default_factory=Soa)
    only_passing: bool = False
    """Leave out instances in warning state too."""
    a_record_limit: int = 0
    """At most this many instances in an answer to A, AAAA or ANY; 0: no limit."""
    node_meta_txt: bool = True
    """Tell a node's meta as TXT in the additional section."""
    translate_wan_addrs: bool = False
    """Answer with ``wan`` addresses for instances of other data centres."""
    forwarded: frozenset[Name] = frozenset()
    """Domains with upstreams of their own: private reverse zones among them are not answered here."""


@dataclass(frozen=True, slots=True)
class Need:
    """A question that has to be asked first."""

    query: Query


@dataclass(frozen=True, slots=True)
class Unknown:
    """The catalogue cannot be asked and nothing is known: SERVFAIL, with the reason (RFC 8914)."""

    why: str
    timed_out: bool


Outcome = Found | Need | Unknown


def resolve(query: wire.Query, facts: Facts, settings: ZoneSettings, serial: int) -> Outcome | None:
    """Answer *query* from *facts*; None when its name lies in no zone of ours.

    Args:
        serial: of the SOA; seconds since 1970, as Consul's.
    """
    labels = tuple(label.lower() for label in query.name)
    try:
        # One may lie below the other; the names below the longer one are its own.
        for domain in sorted(filter(None, (settings.domain, settings.alt_domain)), key=len, reverse=True):
            if labels[-len(domain) :] == tuple(label.lower() for label in domain):
                return _Zone(query, facts, settings, serial, domain).answer(labels[: -len(domain)])
        zone = _Zone(query, facts, settings, serial, settings.domain)
        address = address_of_reverse(labels)
        if address and (reverse := zone.reverse(address)):
            return reverse
        if any(Name(labels[start:]) in settings.forwarded for start in range(len(labels))):
            return None
        denied = special(query, labels, serial, address_ttl=settings.soa.min_ttl)
        # Nobody but the catalogue knows the names of private addresses.
        return zone.denied(denied) if denied and address else denied
    except _Ends as early:
        return early.outcome


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


def _service_and_tag(parts: tuple[str, ...]) -> tuple[str, str]:
    """Split what stands left of the keyword into the service's name and the tag to filter by, if any."""
    match parts:
        case (service, proto) if service.startswith("_") and proto.startswith("_"):
            # RFC 2782 notation. ``_tcp`` is what everybody writes, so Consul takes it for no filter.
            return service[1:], "" if proto == "_tcp" else proto[1:]
    # Consul: all labels left of the name, dots and all, are one tag.
    return parts[-1], ".".join(parts[:-1])


class _Ends(Exception):
    """The answer is settled in the middle of making it. Never leaves this module."""

    def __init__(self, outcome: Need | Unknown) -> None:
        self.outcome = outcome


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
    chased: dict[AliasQuery, tuple[Record, ...]] = field(default_factory=dict)
    """What aliases met on the way resolve to. One that is met again while it is being resolved, a loop, has
    nothing: and none is resolved twice, however many lead to it."""
    uses: set[Query] = field(default_factory=set)
    stale: Fact | None = None
    """The first stale fact that was used."""
    left_out: list[tuple[ServiceEntry, str]] = field(default_factory=list)

    def answer(self, labels: tuple[bytes, ...]) -> Found:
        """Find the rule for the name; *labels* are folded and stripped of the domain."""
        if self.query.type in _TRANSFERS:
            return Found(wire.NOTIMP)
        if self.query.type in (wire.SOA, wire.NS):
            return self.apex(lasting=not labels)
        try:
            texts = tuple(map(_to_text, labels))
        except Malformed:  # no name of the catalogue can be meant
            return self.nothing()

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

    def keyword(self, keyword: str, parts: tuple[str, ...], suffixes: tuple[str, ...]) -> Found:
        """Answer ``<parts>.<keyword>.<suffixes>``."""
        match keyword, suffixes:
            case "addr", _:  # the address says it all; Consul does not look at what follows
                return self.address(parts)
            case "virtual", (_, *_):
                # Consul: a virtual address means something in its own data centre only, and what stands here
                # is a cluster peer. Peers' services are not followed.
                return self.nothing()
            case _, ():
                dc = None
            case _, (name,) | (name, "dc"):  # newer releases take ``.D.dc``; 1.8 knew only ``.D``
                dc = None if name == fold(self.own_dc()) else name
            case _:
                return self.nothing()
        if not parts:
            return self.empty()  # an empty non-terminal: names exist below it (RFC 8020)
        match keyword:
            case "service":
                return self.service(parts, dc)
            case "connect":
                return self.mesh(ConnectQuery(ServiceName(parts[-1]), dc), lasting=len(parts) == 1)
            case "ingress":
                return self.mesh(IngressQuery(ServiceName(parts[-1]), dc), lasting=len(parts) == 1)
            case "virtual":
                return self.virtual(ServiceName(parts[-1]), lasting=len(parts) == 1)
            case "query":
                return self.prepared(parts, dc)
            case _:
                return self.node(".".join(parts), dc)

    # The kinds of name ------------------------------------------------------------------------------------

    def apex(self, *, lasting: bool) -> Found:
        """SOA and NS: whatever the name, those of the zone, with the Consul servers as its name servers."""
        servers = self.servers()
        if self.query.type == wire.NS:
            if not servers:
                return self.empty(lasting=lasting)
            return self.end(choices=servers, limit=_MAX_SERVERS, lasting=lasting)
        servers = servers[:_MAX_SERVERS]
        choice = Choice((self.soa(),), tuple(glue for server in servers for glue in server.additional))
        authority = tuple(record for server in servers for record in server.answer)
        return self.end(choices=(choice,), authority=authority, lasting=lasting)

    def servers(self) -> tuple[Choice, ...]:
        """The NS records of the zone with their addresses."""
        try:
            if _SERVERS not in self.facts and _SERVERS.name not in self.know(NamesQuery()):
                return ()  # the embedded agent has no servers
            entries = self.know(_SERVERS)
        except _Ends as early:
            if isinstance(early.outcome, Need):
                raise
            return ()
        ttl = self.settings.node_ttl
        choices = []
        for entry in entries:
            name = self.node_name(entry.node)
            if name is not None and not rejection(entry, "", self.settings):
                glue = host_record(name, entry.node.address, ttl)
                choices.append(Choice((pointer(self.domain, wire.NS, ttl, name),), (glue,) if glue else ()))
        return tuple(choices)

    def service(self, parts: tuple[str, ...], dc: str | None) -> Found:
        """``[tag.]name.service`` and RFC 2782's ``_name._proto.service``."""
        name, tag = _service_and_tag(parts)
        query = ServiceQuery(ServiceName(name), dc)
        # A name that is not followed yet has to be in the list of names: random ones start no watch. One that
        # is followed is believed more than the list, since either may be heard of first.
        if query not in self.facts and name not in self.know(NamesQuery(dc)):
            return self.nothing()
        entries = self.usable(self.know(query), tag)
        if not entries:
            return self.nothing()
        return self.instances(entries, self.service_ttl(name), remote=dc is not None)

    def usable(self, entries: Iterable[ServiceEntry], tag: str = "") -> list[ServiceEntry]:
        """Return those that may be given to clients; note why the others may not."""
        usable = []
        for entry in entries:
            if why := rejection(entry, tag, self.settings):
                self.left_out.append((entry, why))
            else:
                usable.append(entry)
        return usable

    def mesh(self, query: ConnectQuery | IngressQuery, *, lasting: bool) -> Found:
        """``name.connect`` and ``name.ingress``: the proxies or gateways of a service, as if its instances.

        Args:
            lasting: nothing stands left of the name. Consul does not look at what does, so that anybody can
                make up any number of such names.
        """
        entries = self.usable(self.know(query))
        if not entries:
            return self.nothing()
        ttl = self.service_ttl(query.name)
        return self.instances(entries, ttl, remote=query.dc is not None, lasting=lasting)

    def virtual(self, name: ServiceName, *, lasting: bool) -> Found:
        """``name.virtual``: the address by which transparent proxies know a service, whatever its health.

        The HTTP API tells it with the service's proxies alone. One that has none, though Consul has given it
        an address (by a configuration entry, or for proxies that it had), is unknown here.
        """
        for entry in self.know(ConnectQuery(name)):
            if virtual := entry.tagged_addresses.get(_VIRTUAL):
                record = host_record(self.query.name, virtual.host, self.settings.node_ttl)
                # Unlike Consul, which answers every type with it.
                fits = record is not None and self.query.type in (record.type, wire.ANY)
                return self.found((Choice((record,) if record and fits else ()),), lasting=lasting)
        return self.nothing()

    def prepared(self, parts: tuple[str, ...], dc: str | None) -> Found:
        """``name.query``: what a prepared query finds, by rules of its own for health, place and tags."""
        match parts:
            case (first, *_, last) if first.startswith("_") and last.startswith("_"):
                name = ".".join(parts[:-1])[1:]  # RFC 2782 notation; newer releases take it
            case _:
                name = ".".join(parts)  # Consul: it may have dots
        result: PreparedResult = self.know(PreparedQuery(name, dc))
        if not result.entries:
            return self.nothing()
        ttl = self.service_ttl(fold(result.service)) if result.ttl is None else int(result.ttl)
        remote = fold(result.dc or self.own_dc()) != fold(self.own_dc())
        # Lasting, although templates match any number of names: only so many are followed.
        return self.instances(result.entries, ttl, remote=remote, ordered=result.ordered)

    def node(self, name: str, dc: str | None) -> Found:
        """``name.node``: the node's address whatever its health, and its meta."""
        nodes: Nodes = self.know(NodesQuery(dc))
        node = nodes.by_name.get(name)
        if node is None:
            return self.nothing()
        ttl, owner = self.settings.node_ttl, self.query.name
        host = self.node_address(node, self.query.type, remote=dc is not None)
        address = self.address_records(owner, host, ttl)
        meta = records.meta_records(owner, node, ttl)
        match self.query.type:
            case wire.TXT:
                return self.found(tuple(Choice((record,)) for record in meta))
            case wire.ANY:
                return self.found(tuple(Choice((record,)) for record in (*address, *meta)))
        return self.found((Choice(address, meta if self.settings.node_meta_txt else ()),))

    def address(self, parts: tuple[str, ...]) -> Found:
        """``<hex>.addr``: the address that the name itself spells."""
        if not parts:
            return self.empty()  # as in ``keyword``
        try:
            packed = bytes.fromhex(parts[0])
        except ValueError:
            return self.nothing()
        if len(parts) != 1 or len(packed) not in (4, 16) or len(parts[0]) != 2 * len(packed):
            return self.nothing()
        rtype = wire.A if len(packed) == 4 else wire.AAAA
        if self.query.type not in (rtype, wire.ANY):
            # Unlike Consul, which answers A with an AAAA record: a stub resolver takes that for garbage.
            return self.empty()
        return Found(choices=(Choice((Record(self.query.name, rtype, self.settings.node_ttl, packed),)),))

    def reverse(self, address: str) -> Found | None:
        """PTR: the node with *address*, else the service; None when the catalogue tells of neither."""
        # Others may know the name when the catalogue cannot be asked: that is no reason for SERVFAIL.
        nodes = self.facts.get(NodesQuery())
        if nodes is None:
            raise _Ends(Need(NodesQuery()))
        self.use(NodesQuery(), nodes)
        if nodes.value is None:
            return None
        node = nodes.value.by_address.get(address)
        if node is not None:
            target = self.node_name(node)
        else:
            services = self.facts.get(AddressesQuery())
            if services is None:
                raise _Ends(Need(AddressesQuery()))
            self.use(AddressesQuery(), services)
            entry = (services.value or {}).get(address)
            if entry is None:
                return None
            target = self.service_name(entry)
        if target is None:
            return None
        if self.query.type not in (wire.PTR, wire.ANY):
            return self.empty()
        return self.end(choices=(Choice((pointer(self.query.name, wire.PTR, 0, target),)),))

    def denied(self, found: Found) -> Found:
        """The denial *found* of a name that ``reverse`` has not met.

        Raises:
            _Ends: that would be said on stale grounds, or on none.
        """
        if self.stale is not None:
            raise _Ends(self.unknown(self.stale))
        return replace(found, uses=tuple(self.uses))

    def instances(
        self,
        entries: Iterable[ServiceEntry],
        ttl: int,
        *,
        remote: bool,
        ordered: bool = False,
        lasting: bool = True,
    ) -> Found:
        """One choice per distinct address; for SRV, per distinct (node, address, port).

        Args:
            remote: they are in another data centre.
            ordered: the best one comes first.
            lasting: as of ``found``.
        """
        choices: dict[bytes, Choice] = {}
        alike: set[tuple[str, str, int]] = set()
        aliases: dict[str, str] = {}
        for entry in entries:
            own, host, port = self.entry_address(entry, self.query.type, remote=remote)
            if self.query.type == wire.SRV:
                # Consul: instances that were registered alike are one, of whatever weight.
                key = (entry.node.name, entry.address, entry.port)
                if key not in alike:
                    alike.add(key)
                    choice = self.srv(entry, host, port, ttl, own=own)
                    choices[b"".join(record.data for record in choice.answer)] = choice
                continue
            record = host_record(self.query.name, host, ttl)
            if record is None:
                continue
            if record.type == wire.CNAME:
                aliases[fold(host)] = host
            elif self.query.type in (record.type, wire.ANY):
                choices[record.data] = Choice((record,))
        if aliases and not choices:
            # A name has one CNAME or none, and nothing beside it (RFC 1034 section 3.6.2).
            chains = [self.address_records(self.query.name, host, ttl) for host in aliases.values()]
            return self.found(tuple(map(Choice, chains)), limit=1, ordered=ordered, lasting=lasting)
        # Consul: a_record_limit is not for SRV.
        limit = 0 if self.query.type == wire.SRV else self.settings.a_record_limit
        return self.found(tuple(choices.values()), limit=limit, ordered=ordered, lasting=lasting)

    def srv(self, entry: ServiceEntry, host: str, port: int, ttl: int, *, own: bool) -> Choice:
        """The SRV record of one instance, with what its target resolves to (RFC 2782).

        Args:
            own: the node's name does not lead to *host*; else it is the target.
        """
        if not 0 <= port <= _MAX_UINT16:
            # Consul's catalogue takes any number, and its DNS tells the lowest 16 bits: somebody else's port.
            self.left_out.append((entry, f"its port {port} is none (0 to {_MAX_UINT16})"))
            return Choice(())
        node_name = self.node_name(entry.node)
        try:
            address: IPv4Address | IPv6Address | None = ip_address(host)
        except ValueError:
            address = None
        additional: tuple[Record, ...] = ()
        if address is None:
            try:
                target = name_from_text(host)  # somebody else's name
            except Malformed:
                return Choice(())
            additional = self.chase(target, wire.A, ttl)
        else:
            if own or node_name is None:
                dc = (entry.node.dc or self.own_dc()).encode()
                target = Name((address.packed.hex().encode(), b"addr", dc, *self.domain))
            else:
                target = node_name
            rtype = wire.A if address.version == 4 else wire.AAAA
            additional = (Record(target, rtype, ttl, address.packed),)
        if self.settings.node_meta_txt and node_name is not None:
            additional += records.meta_records(node_name, entry.node, ttl)
        weight = min(max(entry.weight, 0), _MAX_UINT16)
        return Choice((records.srv(self.query.name, ttl, weight, port, target),), additional)

    # Addresses --------------------------------------------------------------------------------------------

    def entry_address(self, entry: ServiceEntry, qtype: int, *, remote: bool) -> tuple[bool, str, int]:
        """Where one instance is: (has an address that its node's name does not lead to, host, port)."""
        host, port = entry.address, entry.port
        if remote and self.settings.translate_wan_addrs and (wan := entry.tagged_addresses.get("wan")):
            port = wan.port or port
        for key in self.address_keys(qtype, remote=remote):
            if tagged := entry.tagged_addresses.get(key):
                host = tagged.host
                break
        node_host = self.node_address(entry.node, qtype, remote=remote)
        if _same_name(host, self.query.name) and _is_address(node_host):
            host = ""  # Consul: an instance that is its own alias is reached at its node
        # Consul: a node's name stands for its plain address, and for no tagged one. Of another data centre an
        # agent may tell the wide address for the plain one; what it was is then among the tagged ones.
        plain = entry.node.tagged_addresses.get("lan", entry.node.address)
        return bool(host) or node_host != plain, host or node_host, port

    def node_address(self, node: Node, qtype: int, *, remote: bool) -> str:
        for key in self.address_keys(qtype, remote=remote):
            if tagged := node.tagged_addresses.get(key):
                return tagged
        return node.address

    def address_keys(self, qtype: int, *, remote: bool) -> tuple[str, ...]:
        """The tagged addresses that are preferred to the plain one, best first.

        Consul: one of the family asked for, be it of the local network, is preferred to ``wan``.
        """
        wide = remote and self.settings.translate_wan_addrs
        four = ("wan_ipv4", "lan_ipv4") if wide else ("lan_ipv4",)
        six = ("wan_ipv6", "lan_ipv6") if wide else ("lan_ipv6",)
        plain = ("wan",) if wide else ()
        match qtype:
            case wire.A:
                return four + plain
            case wire.AAAA:
                return six + plain
            case _:
                return six + four + plain

    def address_records(self, owner: Name, host: str, ttl: int) -> tuple[Record, ...]:
        """What *host* contributes: its A or AAAA record if that was asked for, or a CNAME and its chain."""
        record = host_record(owner, host, ttl)
        if record is None:
            return ()
        if record.type == wire.CNAME:
            # RFC 1034 section 3.6.2: an alias stands for all types but its own. Unlike Consul, which follows
            # with A whatever was asked. Types without number are an attacker's to choose: none is followed.
            if self.query.type == wire.CNAME or self.query.type not in wire.KNOWN_TYPES:
                return (record,)
            return (record, *self.chase(name_from_text(host), self.query.type, ttl))
        return (record,) if self.query.type in (record.type, wire.ANY) else ()

    def chase(self, target: Name, qtype: int, ttl: int) -> tuple[Record, ...]:
        """What *target* resolves to, by our own zone or by an upstream.

        Args:
            ttl: of the record that leads there. Consul gives it to the whole chain; here a record's own TTL
                is the upper bound, since a chain must not outlive its last link.
        """
        folded = Name(tuple(label.lower() for label in target))
        alias = AliasQuery(folded, qtype)
        if alias not in self.chased:
            self.chased[alias] = ()
            self.chased[alias] = self.chain(alias, target)[:_MAX_ALIAS_RECORDS]
        return tuple(replace(record, ttl=min(ttl, record.ttl)) for record in self.chased[alias])

    def chain(self, alias: AliasQuery, target: Name) -> tuple[Record, ...]:
        """The records that *alias* leads to; *target* is its name in the case that was registered."""
        for domain in filter(None, (self.settings.domain, self.settings.alt_domain)):
            if alias.name[-len(domain) :] == tuple(label.lower() for label in domain):
                query = replace(self.query, name=target, type=alias.type)
                inner = replace(self, query=query, domain=domain, left_out=[])
                found = inner.answer(alias.name[: -len(domain)])
                self.stale = self.stale or inner.stale
                return tuple(record for choice in found.choices for record in choice.answer)
        if alias.type == wire.ANY:  # upstreams answer it with as little as they like (RFC 8482)
            alias = replace(alias, type=wire.A)
        known: tuple[Record, ...] = self.know(alias)
        return known

    # Names and times --------------------------------------------------------------------------------------

    def node_name(self, node: Node) -> Name | None:
        """The name of *node* in our zone; None when DNS cannot carry it."""
        return self.name_of(node.name, "node", node.dc)

    def service_name(self, entry: ServiceEntry) -> Name | None:
        return self.name_of(entry.name, "service", entry.node.dc)

    def name_of(self, what: str, kind: str, dc: str) -> Name | None:
        try:
            name = Name((*name_from_text(f"{what}.{kind}.{dc or self.own_dc()}"), *self.domain))
        except Malformed:
            return None
        return name if len(name_to_wire(name)) <= wire.MAX_NAME_LENGTH else None

    def service_ttl(self, name: str) -> int:
        """Consul: the exact name, then the longest ``prefix*``."""
        ttls = self.settings.service_ttl
        if name in ttls:
            return int(ttls[name])
        prefixes = [key[:-1] for key in ttls if key.endswith("*") and name.startswith(key[:-1])]
        return int(ttls[max(prefixes, key=len) + "*"]) if prefixes else 0

    def own_dc(self) -> str:
        """The agent's data centre: configured, else what its nodes say."""
        return self.settings.datacenter or self.know(NodesQuery()).dc or "dc1"

    # Facts, and endings ------------------------------------------------------------------------------------

    def know(self, query: Query) -> Any:
        """Return what is known about *query*.

        Raises:
            _Ends: nothing is, because it has to be asked first or because it cannot be asked.
        """
        fact = self.facts.get(query)
        if fact is None:
            raise _Ends(Need(query))
        self.use(query, fact)
        if fact.value is None:
            raise _Ends(self.unknown(fact))
        return fact.value

    def use(self, query: Query, fact: Fact) -> None:
        self.uses.add(query)
        if fact.stale and self.stale is None:
            self.stale = fact

    def found(
        self, choices: tuple[Choice, ...], *, limit: int = 0, ordered: bool = False, lasting: bool = True
    ) -> Found:
        """The records of an existing name; NODATA when it has none of this type.

        Args:
            lasting: there are finitely many such names.
        """
        choices = tuple(choice for choice in choices if choice.answer)
        # Types without number are an attacker's to choose; those that people use are few.
        lasting = lasting and self.query.type in wire.KNOWN_TYPES
        if not choices:
            return self.empty(lasting=lasting)
        return self.end(choices=choices, limit=limit, ordered=ordered, lasting=lasting)

    def empty(self, *, lasting: bool = False) -> Found:
        """NODATA: the name exists and has no such record."""
        return self.end(authority=(self.soa(),), lasting=lasting)

    def nothing(self) -> Found:
        """NXDOMAIN: neither the name nor anything below it exists.

        Raises:
            _Ends: that would be said on stale grounds.
        """
        if self.stale is not None:
            raise _Ends(self.unknown(self.stale))
        return self.end(rcode=wire.NXDOMAIN, authority=(self.soa(),))

    def end(self, **fields: Any) -> Found:
        stale = "" if self.stale is None else self.stale.why or "the catalogue cannot be asked"
        return Found(**fields, uses=tuple(self.uses), stale=stale, left_out=tuple(self.left_out))

    def unknown(self, fact: Fact) -> Unknown:
        why = fact.why or "the catalogue cannot be asked"
        return Unknown(why, fact.timed_out)

    def soa(self) -> Record:
        server = Name((b"ns", *self.domain))
        return records.soa_record(self.domain, server, self.settings.soa, self.serial)


def _to_text(label: bytes) -> str:
    """Return a folded label as text.

    Raises:
        Malformed: it holds what no name of the catalogue can hold here: a dot inside a label would be taken
            for the end of one, and octets beyond ASCII have no agreed meaning.
    """
    if b"." in label or not label.isascii():
        raise Malformed(f"the label {name_to_text(Name((label,)))} names nothing in the catalogue")
    return intern(label.decode("ascii"))  # each answer keeps what it was made from


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _same_name(host: str, name: Name) -> bool:
    return fold(host.removesuffix(".")) == fold(name_to_text(name).removesuffix("."))

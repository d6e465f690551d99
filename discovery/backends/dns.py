"""A catalogue read from DNS: the SRV records of ``NAME.service.consul``.

    UDP to each server, 50 ms apart ──first useful answer──> complete? ──no──> the same over TCP
                                                                 └─yes─> instances

Laws:
- A denial counts only when it comes from the registry: with the SOA record of its domain. The public DNS
  denies all of ``.consul``, and a resolver that knows no better passes that on.
- A set is read whole. Consul fills a UDP reply as far as it goes and does not say that it cut it, so a
  reply that is anywhere near full is asked for again over TCP.
- Where somebody waits for a change it is asked again when the TTL is over, and at most once a second.
- Which server answers is found out each time; a server that refuses makes room for the next at once.
- dnspython is loaded when the first question is asked. Its errors and socket's end here.
"""

from __future__ import annotations

import ipaddress
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from discovery.backends import read_once
from discovery.errors import Attempt, RegistryTimeout, RegistryUnavailable
from discovery.model import (
    Node,
    NodeName,
    Query,
    Reply,
    ServiceEntry,
    ServiceID,
    ServiceQuery,
    Source,
    Weights,
)
from discovery.names import dns_label_problem

if TYPE_CHECKING:
    import dns.message
    import dns.rrset

__all__ = ["Dns", "Server"]

STAGGER: Final = 0.05
"""Seconds from one server to the next: a local one has answered by then, and the others are spared."""
RESEND: Final = 0.2
"""Seconds after which a question is sent again: a datagram may be lost."""
PAYLOAD: Final = 4096
"""Octets of a UDP reply that we offer to take (RFC 6891 section 6.2.5). The servers are on this host or
next to it, where large datagrams arrive; without the offer Consul tells of three instances only."""
MAYBE_CUT: Final = PAYLOAD // 2
"""A UDP reply this large may have been cut: Consul measures it before compression, which halves it."""
REFRESH: Final = 1.0
"""Seconds between two questions at least; Consul's TTL is 0 unless somebody set one."""
PATIENCE: Final = 2.0
"""Seconds for one question when nobody is in a hurry."""
_STALE_ERRORS: Final = frozenset({3, 19})
"""Extended DNS errors Stale Answer and Stale NXDOMAIN Answer (RFC 8914 sections 4.4 and 4.20)."""

Entries = tuple[ServiceEntry, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """A name server."""

    host: str
    port: int = 53

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class _Answer:
    entries: Entries
    ttl: float
    server: Server
    stale: bool


class Dns:
    """A catalogue over DNS. Creating it does no I/O.

    Args:
        servers: returns the servers to ask, in order; called for every question, as ``resolv.conf`` may
            have changed.
        domain: the registry's domain.
    """

    source: Source = "dns"

    def __init__(self, servers: Callable[[], Sequence[Server]], domain: str = "consul") -> None:
        self._servers = servers
        self.domain: str = domain.strip(".")

    @property
    def where(self) -> str:
        return "DNS"

    def covers(self, query: Query) -> bool:
        """Say whether *query* can be asked in DNS: the instances of a service whose name is a label."""
        return (
            isinstance(query, ServiceQuery)
            and dns_label_problem(query.name) is None
            and (query.dc is None or dns_label_problem(query.dc) is None)
        )

    def connect(self) -> DnsReader:
        return DnsReader(self)

    def read(self, query: Query, *, timeout: float = 10.0) -> Reply:
        return read_once(self, query, timeout)

    def resolve(self, query: Query, timeout: float, interrupted: threading.Event) -> _Answer:
        """Ask all servers until one gives a useful answer.

        Raises:
            RegistryTimeout: none did in time.
            RegistryUnavailable: none can; ``attempts`` says why of each.
        """
        if not isinstance(query, ServiceQuery) or not self.covers(query):
            raise RegistryUnavailable(f"DNS cannot be asked for {query}")
        import dns.message

        name = f"{query.name}.service.{query.dc + '.' if query.dc else ''}{self.domain}."
        question = dns.message.make_query(name, "SRV", use_edns=0, payload=PAYLOAD)
        asked = _Asked(question, list(self._servers()), self.domain, time.monotonic() + timeout)
        reply, server = asked.first_useful(interrupted)
        return _Answer(
            _entries(query, reply),
            float(min((rrset.ttl for rrset in reply.answer), default=0)),
            server,
            _is_stale(reply),
        )


@dataclass(frozen=True, slots=True)
class _Last:
    """What a reader was told last."""

    query: Query
    entries: Entries
    index: int
    due: float
    """When to ask again, in seconds on the monotonic clock."""


class DnsReader:
    """Reads that wait for a change by asking again and again."""

    def __init__(self, catalogue: Dns) -> None:
        self._catalogue = catalogue
        self._interrupted = threading.Event()
        self._last: _Last | None = None

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        catalogue, deadline = self._catalogue, time.monotonic() + wait
        while True:
            last = self._last if self._last is not None and self._last.query == query else None
            if index and last is not None:
                self._interrupted.wait(max(min(last.due, deadline) - time.monotonic(), 0.0))
                if deadline < last.due and not self._interrupted.is_set():
                    return Reply(last.entries, index, source="dns", where=catalogue.where)
            answer = catalogue.resolve(query, min(timeout, PATIENCE), self._interrupted)
            error = None
            if answer.stale:
                error = RegistryUnavailable(
                    f"the name server {answer.server} cannot reach the registry and answers what it knew"
                )
            changed = last is None or answer.entries != last.entries
            number = 1 if last is None else last.index + changed
            due = time.monotonic() + max(answer.ttl, REFRESH)
            self._last = _Last(query, answer.entries, number, due)
            if changed or not index or error is not None:
                return Reply(answer.entries, number, source="dns", where=catalogue.where, error=error)

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        """Nothing stays open between two questions."""


class _Asked:
    """One question to several servers."""

    def __init__(
        self, question: dns.message.Message, servers: list[Server], domain: str, deadline: float
    ) -> None:
        self._question = question
        self._wire = question.to_wire()
        self._waiting = servers  # not asked yet
        self._domain = domain
        self._deadline = deadline
        self._started = time.monotonic()
        self._attempts: list[Attempt] = []

    def first_useful(self, interrupted: threading.Event) -> tuple[dns.message.Message, Server]:
        with selectors.DefaultSelector() as asked:
            try:
                return self._first_useful(asked, interrupted)
            finally:
                for key in list(asked.get_map().values()):
                    asked.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]

    def _first_useful(
        self, asked: selectors.BaseSelector, interrupted: threading.Event
    ) -> tuple[dns.message.Message, Server]:
        next_start = resend = self._started
        while not interrupted.is_set():
            now = time.monotonic()
            if now >= self._deadline:
                for key in asked.get_map().values():
                    self._gave_up(key.data, "no answer")
                raise RegistryTimeout(self._failure(), attempts=self._attempts)
            if self._waiting and (now >= next_start or not asked.get_map()):
                self._start(asked, self._waiting.pop(0))
                next_start = now + STAGGER
                continue
            if not asked.get_map():
                raise RegistryUnavailable(self._failure(), attempts=self._attempts)
            if now >= resend + RESEND:
                resend = now
                for key in asked.get_map().values():
                    _send(key.fileobj, self._wire)  # type: ignore[arg-type]
            wake = min(resend + RESEND, self._deadline, next_start if self._waiting else self._deadline)
            for key, _ in asked.select(max(wake - now, 0.0)):
                useful, problem = self._receive(key.fileobj, key.data)  # type: ignore[arg-type]
                if useful is not None:
                    return useful, key.data
                if problem is not None:
                    self._gave_up(key.data, problem)
                    asked.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    next_start = now  # there is no reason left to wait for it
        raise RegistryUnavailable("the question was interrupted", attempts=self._attempts)

    def _start(self, asked: selectors.BaseSelector, server: Server) -> None:
        sock: socket.socket | None = None
        try:
            # Numeric: looking a name server's name up could take for ever.
            found = socket.getaddrinfo(
                server.host, server.port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
            )
            family, kind, protocol, _, address = found[0]
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            # Connected: replies of others are not ours, and a refusal (ICMP) is heard at once.
            sock.connect(address)
            sock.send(self._wire)
        except OSError as exc:
            if sock is not None:
                sock.close()
            self._gave_up(server, (exc.strerror or str(exc)).lower())
            return
        asked.register(sock, selectors.EVENT_READ, server)

    def _receive(self, sock: socket.socket, server: Server) -> tuple[dns.message.Message | None, str | None]:
        """Return a useful answer, or why this server has none; neither to go on listening."""
        import dns.exception
        import dns.flags
        import dns.message

        try:
            wire = sock.recv(65535)
        except BlockingIOError:
            return None, None
        except OSError as exc:
            return None, (exc.strerror or str(exc)).lower()
        try:
            reply = dns.message.from_wire(wire, ignore_trailing=True, raise_on_truncation=False)
        except dns.exception.DNSException:
            return None, None  # noise; the answer may still come
        if not self._question.is_response(reply):
            return None, None
        problem = self._problem(reply)
        if problem is not None:
            return None, problem
        if reply.flags & dns.flags.TC or len(wire) > MAYBE_CUT:
            reply = self._over_tcp(server) or reply
        return reply, None

    def _over_tcp(self, server: Server) -> dns.message.Message | None:
        import dns.exception
        import dns.query

        left = max(self._deadline - time.monotonic(), RESEND)
        try:
            reply = dns.query.tcp(self._question, server.host, timeout=left, port=server.port)
        except (OSError, EOFError, dns.exception.DNSException):
            return None  # most of the set is better than nothing
        return reply if self._problem(reply) is None else None

    def _problem(self, reply: dns.message.Message) -> str | None:
        """Return why *reply* is of no use, None when it is an answer or a denial that counts."""
        import dns.name
        import dns.rcode
        import dns.rdatatype

        rcode = reply.rcode()
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return dns.rcode.to_text(rcode)
        if _srv(reply) is not None:
            return None
        apex = dns.name.from_text(self._domain)
        if any(rrset.rdtype == dns.rdatatype.SOA and rrset.name == apex for rrset in reply.authority):
            return None
        return f"{dns.rcode.to_text(rcode)} from somebody who is not the authority of {self._domain}"

    def _gave_up(self, server: Server, problem: str) -> None:
        elapsed = time.monotonic() - self._started
        self._attempts.append(Attempt(f"DNS at {server}", elapsed, problem))

    def _failure(self) -> str:
        name = self._question.question[0].name
        if not self._attempts:
            return f"there is no name server to ask for {name}"
        return f"no name server knows {name}: {'; '.join(map(str, self._attempts))}"


def _send(sock: socket.socket, wire: bytes) -> None:
    try:
        sock.send(wire)
    except OSError:
        pass  # a refusal of the first one; it is heard when the socket is read


def _is_stale(reply: dns.message.Message) -> bool:
    """Say whether the server tells what it knew once, as it cannot reach the registry."""
    import dns.edns

    errors = (option for option in reply.options if isinstance(option, dns.edns.EDEOption))
    return any(error.code in _STALE_ERRORS for error in errors)


def _srv(reply: dns.message.Message) -> dns.rrset.RRset | None:
    import dns.rdatatype

    # The owner is not compared: behind a CNAME it is another name than was asked for.
    return next((rrset for rrset in reply.answer if rrset.rdtype == dns.rdatatype.SRV), None)


def _entries(query: ServiceQuery, reply: dns.message.Message) -> Entries:
    import dns.rdatatype

    rrset = _srv(reply)
    if rrset is None:
        return ()
    hosts: dict[str, str] = {}
    for extra in [*reply.answer, *reply.additional]:
        if extra.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            hosts.setdefault(extra.name.to_text().lower(), extra[0].address)
    # A client must try the lowest priority first (RFC 2782, "Priority"); Consul gives all the same.
    lowest = min(record.priority for record in rrset)
    entries = {}
    for record in rrset:
        if record.priority == lowest:
            target = record.target.to_text().lower()
            host = hosts.get(target) or _encoded_address(target) or target.rstrip(".")
            entries[host, record.port] = _entry(query, target, host, record.port, record.weight)
    return tuple(entries[place] for place in sorted(entries))  # servers rotate them


def _entry(query: ServiceQuery, target: str, host: str, port: int, weight: int) -> ServiceEntry:
    labels = target.rstrip(".").split(".")
    node, dc = "", query.dc or ""
    if len(labels) >= 4 and labels[1] in ("node", "addr"):  # <label>.node.<dc>.<domain>
        node, dc = (labels[0] if labels[1] == "node" else ""), labels[2]
    return ServiceEntry(
        node=Node(NodeName(node), host, dc),
        id=ServiceID(f"{host}:{port}"),
        name=query.name,
        address=host,
        port=port,
        weights=Weights(weight, weight),
    )


def _encoded_address(target: str) -> str | None:
    """Return the address that Consul wrote as hexadecimal digits: ``0a000001.addr.dc1.consul.``"""
    digits, _, rest = target.partition(".")
    if not rest.startswith("addr.") or len(digits) not in (8, 32):
        return None
    try:
        return str(ipaddress.ip_address(bytes.fromhex(digits)))
    except ValueError:
        return None

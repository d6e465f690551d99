"""The same questions to two DNS servers, and what their answers must have in common.

`expected` turns Consul's reply into the one that we owe: each function marked with `difference` undoes one
deliberate difference, and nothing else may differ. docs/dns.md lists them by these names, with the reasons.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

__all__ = ["DIFFERENCES", "Question", "Reply", "Server", "Translated", "expected", "mismatch"]

Where = tuple[str, int]
_KEYWORDS: Final = ("service", "node", "addr", "query", "connect", "ingress", "virtual")
_DOMAIN: Final = re.compile(r"(?<![^. ])consul\.(?= |$)", re.IGNORECASE)
_WINDOW: Final = 40  # questions under way at a time; more overflow a socket buffer
_PATIENCE: Final = 5.0  # s


@dataclass(frozen=True)
class Question:
    name: str
    type: str
    edns: int | None = None
    tcp: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Folded labels left of ``consul``, or of the root for other names."""
        labels = tuple(self.name.lower().removesuffix(".").split("."))
        return labels[:-1] if labels[-1] == "consul" else labels

    @property
    def kind(self) -> str:
        """The keyword that decides about the name, as Consul finds it: the first from the right."""
        if self.name.lower().endswith("arpa."):
            return "arpa"
        for label in reversed(self.labels):
            if label in _KEYWORDS:
                return label
            if label.startswith("_") and self.type == "SRV":
                return "service"
        return ""

    def to_wire(self, ident: int) -> bytes:
        message = dns.message.make_query(self.name, self.type)
        if self.edns is not None:
            message.use_edns(0, payload=self.edns)
        message.id = ident
        return message.to_wire()


@dataclass(frozen=True)
class Reply:
    rcode: str
    flags: frozenset[str]
    answer: tuple[str, ...]
    authority: tuple[str, ...]
    additional: frozenset[str]
    """A set: Consul repeats records that two instances have in common."""
    edns: bool

    @classmethod
    def from_wire(cls, raw: bytes) -> Reply:
        message = dns.message.from_wire(raw)
        return cls(
            rcode=dns.rcode.to_text(message.rcode()),
            flags=frozenset(dns.flags.to_text(message.flags).split()),
            answer=tuple(_lines(message.answer)),
            authority=tuple(_lines(message.authority)),
            additional=frozenset(_lines(message.additional)),
            edns=message.edns >= 0,
        )


def _lines(section: Sequence[dns.rrset.RRset]) -> list[str]:
    lines = []
    for rrset in section:
        for record in rrset:
            words = record.to_text().split(" ")
            if rrset.rdtype == dns.rdatatype.SOA:
                words[2] = "SERIAL"  # seconds since 1970
            kind = dns.rdatatype.to_text(rrset.rdtype)
            line = f"{rrset.name} {rrset.ttl} {kind} {' '.join(words)}"
            # ``letters-of-the-domain``: as configured or as asked, all three do it in their own way.
            lines.append(_DOMAIN.sub("consul.", line))
    return sorted(lines)


class Server:
    """Asks one DNS server, many questions at a time."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self._kept: dict[Question, Reply] = {}

    def forget(self) -> None:
        """The catalogue has changed: ask anew."""
        self._kept.clear()

    def ask(self, question: Question) -> Reply:
        if question not in self._kept:
            self.ask_all([question])
        return self._kept[question]

    def ask_all(self, questions: Sequence[Question]) -> list[Reply]:
        for tcp in (False, True):
            some = list({q for q in questions if q.tcp == tcp and q not in self._kept})
            for at in range(0, len(some), _WINDOW):
                window = some[at : at + _WINDOW]
                for number, raw in (self._over_tcp if tcp else self._over_udp)(window):
                    self._kept[window[number]] = Reply.from_wire(raw)
        return [self._kept[question] for question in questions]

    def _over_udp(self, window: Sequence[Question]) -> Iterator[tuple[int, bytes]]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(self.where)
            sock.settimeout(_PATIENCE)
            for number, question in enumerate(window):
                sock.send(question.to_wire(number))
            for _ in window:
                raw = sock.recv(65535)
                yield int.from_bytes(raw[:2]), raw

    def _over_tcp(self, window: Sequence[Question]) -> Iterator[tuple[int, bytes]]:
        with socket.create_connection(self.where, _PATIENCE) as sock, sock.makefile("rb") as stream:
            for number, question in enumerate(window):
                raw = question.to_wire(number)
                sock.sendall(len(raw).to_bytes(2) + raw)
            for _ in window:
                raw = stream.read(int.from_bytes(stream.read(2)))
                yield int.from_bytes(raw[:2]), raw


class Translated(Server):
    """Asks a server under its alternative domain, and tells its answers as if they were of ``consul``."""

    def __init__(self, where: Where, domain: str) -> None:
        super().__init__(where)
        self._domain = domain

    def ask(self, question: Question) -> Reply:
        return self.ask_all([question])[0]

    def ask_all(self, questions: Sequence[Question]) -> list[Reply]:
        there = [replace(one, name=one.name.removesuffix("consul.") + self._domain) for one in questions]
        return [self._back(reply) for reply in super().ask_all(there)]

    def _back(self, reply: Reply) -> Reply:
        ours = re.compile(rf"(?<![^. ]){re.escape(self._domain)}(?= |$)")
        return replace(
            reply,
            answer=tuple(sorted(ours.sub("consul.", line) for line in reply.answer)),
            authority=tuple(sorted(ours.sub("consul.", line) for line in reply.authority)),
            additional=frozenset(ours.sub("consul.", line) for line in reply.additional),
        )


# --- what differs on purpose -----------------------------------------------------------------------------

Adjust = Callable[[Question, Reply, Server], Reply]
DIFFERENCES: dict[str, Adjust] = {}


def _soa(consul: Server) -> tuple[str, ...]:
    return consul.ask(Question("consul.", "SOA")).answer


def _as_if_asked_for(question: Question, left: str, reply: Reply, consul: Server) -> Reply:
    """What we owe to the same question for the name *left* of the domain, with its owners renamed."""
    other = replace(question, name=f"{left}consul.")
    known = expected(other, consul)

    def renamed(lines: Sequence[str] | frozenset[str]) -> list[str]:
        return [
            line.replace(other.name, question.name) if line.startswith(other.name) else line for line in lines
        ]

    return replace(
        known,
        answer=tuple(renamed(known.answer)),
        additional=frozenset(renamed(known.additional)),
        edns=reply.edns,
    )


def difference(name: str) -> Callable[[Adjust], Adjust]:
    def remember(adjust: Adjust) -> Adjust:
        DIFFERENCES[name] = adjust
        return adjust

    return remember


def expected(question: Question, consul: Server) -> Reply:
    """The reply that we owe to *question*, by what *consul* says."""
    reply = consul.ask(question)
    for adjust in DIFFERENCES.values():
        reply = adjust(question, reply, consul)
    return reply


@difference("recursion-available")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    return replace(reply, flags=reply.flags | {"RA"})


@difference("txt-of-services")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """What Consul says to any other type that services do not have."""
    if question.type != "TXT" or question.kind not in ("service", "connect", "ingress", "query"):
        return reply
    return replace(consul.ask(replace(question, type="MX")), flags=reply.flags)


@difference("empty-non-terminals")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """The zone itself, a keyword, a data centre, and a keyword of a data centre."""
    labels = question.labels
    if labels[-1:] == ("dc",) and len(labels) > 1:
        labels = labels[:-1]
    if labels[-1:] == ("dc1",):
        labels = labels[:-1]
    exists = labels == () or (len(labels) == 1 and labels[0] in _KEYWORDS)
    return replace(reply, rcode="NOERROR") if exists and reply.rcode == "NXDOMAIN" else reply


@difference("nodes-have-types")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """Consul says NOERROR to all but four types, whether or not the node exists; and hides its CNAME."""
    if (
        question.labels[:1] == ("node",)
        or question.kind != "node"
        or question.type in ("A", "AAAA", "ANY", "TXT", "SOA", "NS")
    ):
        return reply
    by_address = consul.ask(replace(question, type="A"))
    alias = tuple(line for line in by_address.answer if " CNAME " in line)
    return replace(reply, rcode=by_address.rcode, authority=by_address.authority, answer=alias)


@difference("addr-has-one-type")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """Consul answers every type with the address, in the answer (1.8) or beside it (newer)."""
    if question.kind != "addr" or question.type in ("ANY", "SOA", "NS"):
        return reply
    answer = tuple(line for line in reply.answer if f" {question.type} " in line)
    return replace(reply, answer=answer, additional=frozenset())


@difference("addr-of-wrong-length")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """1.8 says NOERROR to hexadecimal that is no address; newer releases NXDOMAIN."""
    if question.kind != "addr" or question.labels[:1] == ("addr",) or question.type in ("SOA", "NS"):
        return reply
    any_type = consul.ask(replace(question, type="ANY"))
    return reply if any_type.answer else replace(reply, rcode="NXDOMAIN", authority=_soa(consul))


@difference("virtual-is-one-address")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """Consul answers every type with the A record of a virtual name, and says NOERROR where there is none."""
    if question.kind != "virtual" or question.labels[:1] == ("virtual",) or question.type in ("SOA", "NS"):
        return reply
    if not reply.answer:
        return replace(reply, rcode="NXDOMAIN", authority=_soa(consul))
    return reply if question.type in ("A", "ANY") else replace(reply, answer=())


@difference("queries-by-rfc-2782")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """``_Q._tcp.query`` came with later releases; 1.8 looks for a query of that very name."""
    labels = question.labels
    named = labels[: labels.index("query")] if question.kind == "query" else ()
    if len(named) < 2 or not named[0].startswith("_") or not named[-1].startswith("_"):
        return reply
    return _as_if_asked_for(question, f"{'.'.join(named[:-1])[1:]}.query.", reply, consul)


@difference("owners-keep-case")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """Consul writes the owner of ``.addr`` and ``.virtual`` answers in lower case."""
    if question.kind not in ("addr", "virtual"):
        return reply
    name = question.name
    return replace(
        reply,
        answer=tuple(f"{name} {line.partition(' ')[2]}" for line in reply.answer if name.lower() in line)
        or reply.answer,
    )


@difference("dc-keyword")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """``.D.dc`` came with later releases; 1.8 does not know it."""
    if question.labels[-1:] != ("dc",) or reply.rcode != "NXDOMAIN":
        return reply
    return _as_if_asked_for(question, question.name.removesuffix("dc.consul."), reply, consul)


@difference("reverse-names-unknown")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """Consul forwards all of them. When it cannot, 1.8 says SERVFAIL, and newer releases NXDOMAIN with the
    authority of a zone that is not theirs. Ours end here when they are private, and else are NXDOMAIN."""
    if question.kind != "arpa" or reply.answer:
        return reply
    if question.name.endswith((".10.in-addr.arpa.", ".8.b.d.0.1.0.0.2.ip6.arpa.")):
        zone = "10.in-addr.arpa." if "in-addr" in question.name else "8.b.d.0.1.0.0.2.ip6.arpa."
        soa = f"{zone} 0 SOA localhost. hostmaster.{zone} SERIAL 3600 600 86400 0"
        return replace(reply, rcode="NXDOMAIN", authority=(soa,), flags=reply.flags | {"AA"})
    return replace(reply, rcode="NXDOMAIN", authority=(), flags=reply.flags - {"AA"})


@difference("reverse-names-have-ptr-only")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """Consul answers PTR whatever was asked."""
    if question.kind != "arpa" or not reply.answer or question.type in ("PTR", "ANY"):
        return reply
    return replace(reply, answer=(), authority=_soa(consul))


@difference("negative-answers-have-soa")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    if reply.rcode == "NOERROR" and not reply.answer and not reply.authority:
        return replace(reply, authority=_soa(consul))
    return reply


@difference("nothing-beside-nothing")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """Consul tells a node's meta beside an empty answer."""
    return reply if reply.answer else replace(reply, additional=frozenset())


@difference("opt-for-opt")
def _(question: Question, reply: Reply, consul: Server) -> Reply:
    """Newer releases lose the OPT when they cut an answer (RFC 6891 section 7)."""
    return replace(reply, edns=question.edns is not None)


# --- comparing -------------------------------------------------------------------------------------------


def mismatch(question: Question, ours: Reply, consul: Server) -> str:
    """Say in what *ours* is not what it should be; empty when it is right."""
    owed = expected(question, consul)
    wrong = [
        f"{what}: {getattr(ours, what)!r}, expected {getattr(owed, what)!r}"
        for what in ("rcode", "edns", "authority")
        if getattr(ours, what) != getattr(owed, what)
    ]
    if ours.flags - {"TC"} != owed.flags - {"TC"}:
        wrong.append(f"flags: {sorted(ours.flags)}, expected {sorted(owed.flags)}")
    # What there is at all: asked over TCP, where nothing is cut.
    everything = expected(replace(question, tcp=True), consul)
    if any(" CNAME " in line for line in everything.answer):
        wrong += _wrong_alias(question, ours, owed)
    elif any(
        " CNAME " in line or _is_foreign_target(line)
        for line in everything.additional | set(everything.answer)
    ):
        if ours.answer != owed.answer:
            wrong.append(f"answer: {ours.answer}, expected {owed.answer}")
    else:
        wrong += _wrong_records(question, ours, owed, everything)
    return "; ".join(wrong)


def _is_foreign_target(line: str) -> bool:
    """An SRV record whose target is a host name: what comes with it is ``alias-types``."""
    return " SRV " in line and not any(f".{kind}." in line.split()[-1] for kind in ("node", "addr"))


def _wrong_alias(question: Question, ours: Reply, owed: Reply) -> list[str]:
    """``alias-types``: Consul follows an alias with A whatever was asked, we with the type.

    Which of several aliases is told is chance in both.
    """
    mine = [line for line in ours.answer if line.startswith(f"{question.name} ")]
    theirs = [line for line in owed.answer if line.startswith(f"{question.name} ")]
    kinds = {line.split()[2] for line in ours.answer} - {"CNAME"}
    if len(mine) != len(theirs) or (question.type != "ANY" and not kinds <= {question.type}):
        return [f"answer: {ours.answer}, expected an alias as in {owed.answer}"]
    if (
        question.type == "A"
        and len(theirs) == 1
        and mine == theirs
        and question.edns
        and " A " in "".join(owed.answer)
    ):
        return (
            [] if set(ours.answer) & set(owed.answer) else [f"answer: {ours.answer}, expected {owed.answer}"]
        )
    return []


def _wrong_records(question: Question, ours: Reply, owed: Reply, everything: Reply) -> list[str]:
    wrong = []
    if question.tcp:
        if ours.answer != owed.answer:
            wrong.append(f"answer: {ours.answer}, expected {owed.answer}")
        if ours.additional != owed.additional:
            wrong.append(f"additional: {sorted(ours.additional)}, expected {sorted(owed.additional)}")
        return wrong
    # Cut answers are chance: as many, and all of them true.
    if not set(ours.answer) <= set(everything.answer) or not ours.additional <= everything.additional:
        wrong.append(f"records that do not exist: {ours.answer} {sorted(ours.additional)}")
    if (question.edns or 0) <= 512:
        # ``node-records-are-counted``: 1.8 applies the limit to services only, newer releases to all.
        count = min(3, len(owed.answer)) if question.kind == "node" else len(owed.answer)
        cut = "TC" in owed.flags and len(ours.answer) > count  # ``cut-by-size``, at 512 octets
        if len(ours.answer) != count and not cut:
            wrong.append(f"{len(ours.answer)} answers, expected {count}")
        return wrong
    # ``cut-by-size``: Consul counts without compression, so that less fits; and it says nothing of the cut.
    if len(ours.answer) < len(owed.answer):
        wrong.append(f"{len(ours.answer)} answers, expected at least {len(owed.answer)}")
    if ("TC" in ours.flags) != (len(ours.answer) < len(everything.answer)):
        wrong.append(
            f"TC is {'TC' in ours.flags}, with {len(ours.answer)} of {len(everything.answer)} answers"
        )
    return wrong


def disagreements(
    questions: Sequence[Question], ours: Server, consul: Server, *, settle: float
) -> dict[Question, str]:
    """Ask all *questions*, and again those whose answers differ, for *settle* seconds.

    Consul's DNS may answer before the blocking reads have told us of a change, and the other way round.
    """
    left = list(dict.fromkeys(questions))
    deadline = float("inf")
    while True:
        consul.forget()
        ours.forget()
        replies = ours.ask_all(left)
        consul.ask_all(left)
        wrong = {
            question: why
            for question, reply in zip(left, replies, strict=True)
            if (why := mismatch(question, reply, consul))
        }
        if not wrong or time.monotonic() > deadline:
            return wrong
        deadline = min(deadline, time.monotonic() + settle)
        left = list(wrong)

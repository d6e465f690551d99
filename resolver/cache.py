"""Replies of upstreams with their TTLs: kept, aged, cut to the client's size.

A reply stays in the wire form in which it came. What changes between two clients is patched: the header, the
question's spelling, the TTLs, and where it is cut.

Laws:
- Pure; ``now`` is an argument (monotonic seconds).
- Nothing is told as fresh for longer than its TTL says (RFC 1035 section 3.2.1), and a negative answer no
  longer than its SOA says (RFC 2308 section 5).
- What has expired is told again when no upstream can say better (RFC 8767), except that a name does not
  exist: a denial would outlive its cause.
- The upstream's OPT never reaches a client: EDNS is between two neighbours (RFC 6891 section 6.1.1).
- Bounded by octets, so that large replies cannot fill the memory where small ones would fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

import dns.exception
import dns.message
from cachetools import LRUCache

from resolver import wire
from resolver.answers import Limits
from resolver.facts import Fact
from resolver.records import Record
from resolver.wire import Frame, Name, fold_question

__all__ = ["Cache", "Key", "Relayed", "key_of"]

Key = tuple[bytes, bool, bool]
"""Folded question, DO and CD of the request: the bits that change what an upstream answers."""

STALE_TTL: Final = 30
"""Seconds for which a client may keep what is stale (RFC 8767 section 4)."""
FAILURE_TTL: Final = 5.0
"""Seconds for which a failure to resolve is remembered, so that it does not cost each client the whole time
limit (RFC 9520 section 3.2; RFC 2308 section 7 allows five minutes)."""
_PREFETCH_SHARE: Final = 10
_PREFETCH_MIN_TTL: Final = 10  # s
"""A name that is asked for in the last tenth of its TTL is fetched anew before it expires, as unbound does.
TTLs under ten seconds are meant to expire."""
MAX_TTL: Final = 86_400  # s; what claims to live longer is asked for again every day (RFC 8767 section 4)
_MAX_FAILURES: Final = 4_096  # remembered at a time; a flood of broken names pushes out older ones
_OVERHEAD: Final = 512  # octets that Python adds to one cached reply, measured with tracemalloc
_TTL: Final = Struct("!I")


def key_of(query: wire.Query) -> Key:
    """Return what tells the replies to *query* from those to others."""
    return (
        fold_question(query.question),
        query.edns is not None and query.edns.do,
        bool(query.flags & wire.CD),
    )


@dataclass(frozen=True, slots=True)
class Relayed:
    """One reply of an upstream."""

    reply: bytes
    frame: Frame
    received: float
    """Monotonic seconds."""
    ttl: int
    """Seconds for which it may be given again; 0: only to those who were waiting for it."""
    answer_ttl: int
    """The least TTL of the answer's records; each is told with it, so that no RRset has two (RFC 2181 section
    5.2). We keep none of them longer than that anyway."""

    @classmethod
    def from_wire(cls, reply: bytes, now: float) -> Relayed:
        """Read *reply*.

        Raises:
            Malformed: it is no whole reply.
        """
        frame = wire.read_frame(reply)
        answer_ttls = [_ttl(reply, ttl_at) for section, _, ttl_at, _ in frame.records if section == 1]
        return cls(reply, frame, now, _lifetime(reply, frame), min(answer_ttls, default=0))

    def to_fact(self) -> tuple[Fact, int]:
        """Return the records of the answer as a fact, and for how many seconds it may be known.

        An answer that is made from it is good for its own TTL again, so each gets half of what there is: both
        together must not outlive the records.

        Raises:
            Malformed: a record cannot be read.
        """
        try:
            message = dns.message.from_wire(self.reply, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError) as exc:
            raise wire.Malformed(f"a record of the reply is broken: {exc or type(exc).__name__}") from exc
        half = max(1, self.ttl // 2)
        records = tuple(
            Record(
                Name(rrset.name.labels[:-1]), int(rrset.rdtype), min(rrset.ttl, half), data.to_wire() or b""
            )
            for rrset in message.answer
            for data in rrset
        )
        return Fact(records), half

    def age(self, now: float) -> int:
        return max(0, int(now - self.received))

    def may_be_stale(self, now: float, max_stale: float) -> bool:
        """Whether it may be told after its TTL, if nobody can say better."""
        return _is_positive(self.frame) and now < self.received + self.ttl + max_stale

    def due(self, now: float) -> bool:
        """Whether somebody who asks for it now is reason enough to fetch it anew."""
        left = self.received + self.ttl - now
        return self.ttl >= _PREFETCH_MIN_TTL and left * _PREFETCH_SHARE < self.ttl

    def to_wire(self, query: wire.Query, limits: Limits, now: float, *, options: bytes = b"") -> bytes:
        """Return the reply to *query* as its client may have it.

        Args:
            options: of the OPT, if there is one.
        """
        frame, age = self.frame, self.age(now)
        stale = age >= self.ttl > 0
        opt = wire.opt(extended_rcode=frame.rcode >> 4, do=limits.do, options=options)
        tail = opt if limits.edns else b""
        flags = wire.QR | wire.RA | limits.flags | (frame.rcode & 0xF)
        if limits.ad or limits.do:  # RFC 6840 section 5.7
            flags |= frame.flags & wire.AD

        room = limits.size - len(tail)
        body = bytearray()
        sections = [0, 0, 0]
        at = wire.HEADER_LENGTH + len(frame.question)
        for section, _, ttl_at, end in frame.records:
            if end > room:
                # RFC 2181 section 9: TC says that what is needed is missing, not that an addition is. An
                # authority is needed where there is no answer: it says why.
                needed = section == 1 or (section == 2 and not sections[0])
                flags |= wire.TC if needed else 0
                break
            sections[section - 1] += 1
            body += self.reply[at:ttl_at]
            ttl = self.answer_ttl if section == 1 else _ttl(self.reply, ttl_at)
            body += _TTL.pack(STALE_TTL if stale else max(0, ttl - age))
            body += self.reply[ttl_at + 4 : end]
            at = end
        return wire.frame(
            query.id, flags, query.question, (*sections[:2], sections[2] + bool(tail)), bytes(body) + tail
        )


def _lifetime(reply: bytes, frame: Frame) -> int:
    """How many seconds *reply* may be kept."""
    if frame.flags & wire.TC:
        return 0  # RFC 2181 section 9: a cut reply is not cached
    ttls = [_ttl(reply, ttl_at) for section, _, ttl_at, _ in frame.records if section < 3]
    if _is_positive(frame):
        return min(ttls)
    if frame.rcode in (wire.NOERROR, wire.NXDOMAIN):
        minima = [
            min(_ttl(reply, ttl_at), _ttl(reply, end - 4))
            for section, rtype, ttl_at, end in frame.records
            if section == 2 and rtype == wire.SOA
        ]
        # RFC 2308 section 5: the lesser of the SOA's TTL and its MINIMUM; without an SOA, not at all. That an
        # alias leads to nothing is a denial, too; the alias itself is none.
        alias = frame.rcode == wire.NOERROR and any(section == 1 for section, *_ in frame.records)
        return min([*minima, *ttls]) if minima or alias else 0
    return 0


def _is_positive(frame: Frame) -> bool:
    """Whether the reply has what was asked for, and not only an alias that leads to nothing."""
    asked = int.from_bytes(frame.question[-4:-2])
    return frame.rcode == wire.NOERROR and any(
        section == 1 and asked in (rtype, wire.ANY) for section, rtype, *_ in frame.records
    )


def _ttl(reply: bytes, at: int) -> int:
    """Return the TTL at octet *at*: one with the top bit set is 0 (RFC 2181 section 8)."""
    ttl: int = _TTL.unpack_from(reply, at)[0]
    return 0 if ttl & 0x8000_0000 else min(ttl, MAX_TTL)


class Cache:
    """Replies by question, the least recently used going first."""

    def __init__(self, max_octets: int, *, max_stale: float) -> None:
        """Make an empty cache.

        Args:
            max_stale: seconds after its TTL for which a reply is kept in case no upstream answers.
        """
        self._replies: LRUCache[Key, Relayed] = LRUCache(max_octets, getsizeof=_size)
        self._failures: LRUCache[Key, tuple[float, str]] = LRUCache(_MAX_FAILURES)
        self._max_stale = max_stale

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: Key, now: float) -> Relayed | None:
        """Return what is kept for *key*, if it is fresh."""
        kept: Relayed | None = self._replies.get(key)
        return kept if kept is not None and now < kept.received + kept.ttl else None

    def stale(self, key: Key, now: float) -> Relayed | None:
        """Return what is kept for *key* if it may be told although it has expired."""
        kept: Relayed | None = self._replies.get(key)
        if kept is None or kept.may_be_stale(now, self._max_stale):
            return kept
        del self._replies[key]
        return None

    def put(self, key: Key, relayed: Relayed) -> None:
        """Keep *relayed* as long as its TTL allows."""
        self._failures.pop(key, None)
        if relayed.ttl > 0 and _size(relayed) <= self._replies.maxsize:
            self._replies[key] = relayed

    def fail(self, key: Key, why: str, now: float) -> None:
        """Remember that *key* could not be resolved."""
        self._failures[key] = (now + FAILURE_TTL, why)

    def failure(self, key: Key, now: float) -> str:
        """Say why *key* could not be resolved a moment ago; empty when it may be tried."""
        until, why = self._failures.get(key, (0.0, ""))
        return why if now < until else ""


def _size(relayed: Relayed) -> int:
    return len(relayed.reply) + _OVERHEAD

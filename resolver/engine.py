"""One request in, one decision out.

    decide(packet) ──> Answer    bytes to send
                   ├─> LookUp    ask the catalogue, then decide again
                   ├─> Forward   ask an upstream, then ``relay`` what it said, or ``lack`` it
                   └─> Drop      say nothing

Laws:
- Pure: no sockets, no waiting; clock and randomness are arguments. Whoever calls acts on the decision.
- What is decided once is remembered in ``tables``; the server answers from there without coming here.
- ``learn`` is the only way in which the catalogue changes what is answered, and it drops exactly the answers
  that were made from what changed.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from resolver import wire, zone
from resolver.answers import Limits, Prepared, Table, prepare
from resolver.cache import Cache, Relayed, key_of
from resolver.facts import Fact, Query
from resolver.records import Found
from resolver.wire import counted_type, fold_question, refuse
from resolver.zone import Need, Unknown, ZoneSettings

if TYPE_CHECKING:
    from random import Random  # the type of an argument

__all__ = ["Answer", "AnswerSettings", "Decision", "Drop", "Engine", "Forward", "LookUp", "Transport"]

Transport = Literal["udp", "tcp"]

_MAX_UDP_ANSWERS: Final = 8  # Consul: to clients that take 512 octets, whatever udp_answer_limit says
_MAX_TCP_ANSWERS: Final = 4096  # Consul: a reply of 64 KiB holds no more
_MAX_TCP_SIZE: Final = 65_535  # octets (RFC 1035 section 4.2.2)

# Extended DNS errors (RFC 8914 section 4).
_STALE_ANSWER: Final = 3
_NO_REACHABLE_AUTHORITY: Final = 22
_NETWORK_ERROR: Final = 23

_SIZES: Final = (wire.MIN_UDP_SIZE, 1024, 1200, 1220, 1232, 1400, 1410, 1440, 1452, 1472, 2048, 4096, 65_535)
"""Octets that clients in use are ready to take, and what comes over TCP. Who takes another number gets what
is ready for the next lower one, unless that had to be cut."""

_MAX_SHARED: Final = 256
"""Limits that prepared answers share; clients in use make some ten."""

_RELAYED: Final = "relayed"
"""What prepared replies of upstreams are made from: the second in which their TTLs are right."""


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """What bounds the answers of this server. The first three are Consul's, with its defaults."""

    udp_answer_limit: int = 3
    """Instances in a reply over UDP to a client that takes 512 octets, as one without EDNS does."""
    enable_truncate: bool = False
    """Set TC when ``udp_answer_limit`` cut the answer. When its size did, TC is always set."""
    disable_compression: bool = False
    max_udp_size: int = 4096
    """Octets of a UDP reply, whatever the client would take: fragments are lost more easily than TCP."""
    cache_octets: int = 16 * 1024 * 1024
    """For replies of upstreams: some 25,000 of them."""
    relayed_max_stale: float = 86_400.0
    """Seconds after its TTL for which a reply is told when no upstream answers. RFC 8767 section 5 suggests
    one to three days."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this."""

    reply: bytes
    refresh: wire.Query | None = None
    """Ask an upstream this, too, before what is kept of it expires."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask the catalogue, then decide again."""

    need: Query
    query: wire.Query


@dataclass(frozen=True, slots=True)
class Forward:
    """Ask an upstream, then ``relay`` or ``lack``."""

    query: wire.Query
    limits: Limits
    stale: bool
    """There is an old answer: an upstream that takes its time is not worth waiting for."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Say nothing."""


Decision = Answer | LookUp | Forward | Drop


class Engine:
    """Everything that decides about answers, and all that is remembered of them."""

    def __init__(
        self,
        zone_settings: ZoneSettings,
        settings: AnswerSettings,
        *,
        monotonic: Callable[[], float],
        wall_clock: Callable[[], float],
        random: Random,
    ) -> None:
        self.tables: dict[Transport, Table] = {"udp": Table(), "tcp": Table()}
        self.facts: dict[Query, Fact] = {}
        self._zone = zone_settings
        self._settings = settings
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._random = random
        self._cache = Cache(settings.cache_octets, max_stale=settings.relayed_max_stale)
        self.decided = 0
        """Requests that came here; all others were answered from the hot tables."""
        self._counts: Counter[tuple[int, int, bool]] = Counter()
        """Answers that were not prepared, by type, rcode and staleness."""

    # Requests ----------------------------------------------------------------------------------------------

    def decide(self, packet: bytes, transport: Transport) -> Decision:
        """Decide about one request."""
        self.decided += 1
        query = wire.parse(packet)
        if query is None:
            return Drop()
        if isinstance(query, wire.Refusal):
            return self.refuse(query, query.rcode)
        if query.edns is not None and query.edns.version > 0:  # RFC 6891 section 6.1.3
            return self.refuse(query, wire.BADVERS)
        if query.klass != wire.IN:  # the only class in which anything here has a meaning
            return self.refuse(query, wire.REFUSED)

        table = self.tables[transport]
        limits = self._limits(query, transport)
        common = _shared(replace(limits, size=_common_size(limits.size)))
        question = fold_question(query.question)
        # A reply without compression repeats the client's letters in each owner: it is good for one spelling.
        shared = limits.compress or query.question == question
        prepared = table.get(question, common) if shared else None
        if prepared is None or (prepared.cut and common != limits):
            match zone.resolve(query, self.facts, self._zone, int(self._wall_clock())):
                case Found() as found:
                    if prepared is None:
                        prepared = self._prepare(query, found, common)
                        if shared:
                            table.put(question, common, prepared)
                    if prepared.cut and common != limits:
                        return self._singly(packet, query, found, limits)
                case Need(need):
                    return LookUp(need, query)
                case Unknown(why, timed_out):
                    return self.fail(query, why, timed_out=timed_out)
                case None:
                    return self._outside(packet, query, limits, transport)
        if query.plain and query.question == question:
            table.promote(packet[2:], prepared)
        return Answer(packet[:2] + prepared.next(query.question))

    def fail(self, query: wire.Query, why: str, *, timed_out: bool) -> Answer:
        """Return SERVFAIL with its reason: a temporary failure, never to be taken for an absent name."""
        code = _NETWORK_ERROR if timed_out else _NO_REACHABLE_AUTHORITY
        return self.refuse(query, wire.SERVFAIL, wire.extended_error(code, why))

    def refuse(self, request: wire.Query | wire.Refusal, rcode: int, options: bytes = b"") -> Answer:
        """Return the answer that only says *rcode*."""
        qtype = counted_type(request.type) if isinstance(request, wire.Query) else 0
        self._counts[qtype, rcode, False] += 1
        return Answer(refuse(request, rcode, options=options))

    def nobody(self, query: wire.Query) -> Answer:
        """Answer when there is nobody to forward *query* to: we serve our zone only, and say so.

        A reverse name is absent instead: programs that look up the name of a peer for their log would wait
        for their next server (Consul says SERVFAIL, with the same effect).
        """
        reverse = query.name[-1:] and query.name[-1].lower() == b"arpa"
        return self.refuse(query, wire.NXDOMAIN if reverse else wire.REFUSED)

    def relay(self, forward: Forward, relayed: Relayed) -> Answer:
        """Answer with what an upstream said; a failure is as if it had not answered."""
        if relayed.frame.rcode in wire.FAILURES:
            return self.lack(forward, _say(relayed))
        self._counts[counted_type(forward.query.type), relayed.frame.rcode, False] += 1
        return Answer(relayed.to_wire(forward.query, forward.limits, self._monotonic()))

    def lack(self, forward: Forward, why: str) -> Answer:
        """Answer although no upstream did: with what is known from before, else SERVFAIL."""
        now = self._monotonic()
        kept = self._cache.stale(key_of(forward.query), now)
        if kept is None:
            return self.fail(forward.query, why, timed_out=True)
        options = wire.extended_error(_STALE_ANSWER, why)
        self._counts[counted_type(forward.query.type), kept.frame.rcode, True] += 1
        return Answer(kept.to_wire(forward.query, forward.limits, now, options=options))

    def keep(self, query: wire.Query, outcome: Relayed | Exception) -> None:
        """Remember what upstreams said to *query*, or that they said nothing."""
        key = key_of(query)
        if isinstance(outcome, Exception):
            self._cache.fail(key, str(outcome), self._monotonic())
        elif outcome.frame.rcode in wire.FAILURES:
            self._cache.fail(key, _say(outcome), self._monotonic())
        else:
            self._cache.put(key, outcome)

    # Changes -----------------------------------------------------------------------------------------------

    def learn(self, query: Query, fact: Fact) -> None:
        """Take in what is known now about *query*; every answer made from what was known before is gone."""
        if self.facts.get(query) == fact:
            return
        self.facts[query] = fact
        self._drop(query)

    def forget(self, query: Query) -> None:
        """Know nothing about *query* any more: nobody follows it."""
        self.facts.pop(query, None)
        self._drop(query)

    def tick(self) -> None:
        """To be called every second: relayed replies count down in seconds, prepared ones are wrong now."""
        for table in self.tables.values():
            table.drop(_RELAYED)

    def served(self, query: Query) -> int:
        """How many answers were given from *query* since it changed last."""
        return sum(table.served(query) for table in self.tables.values())

    def counts(self) -> Counter[tuple[int, int, bool]]:
        """Return how many answers were given, by type, rcode and staleness."""
        total = self._counts.copy()
        for table in self.tables.values():
            total.update(table.counts())
        return total

    @property
    def relayed(self) -> int:
        """How many replies of upstreams are kept."""
        return len(self._cache)

    # Inside ------------------------------------------------------------------------------------------------

    def _drop(self, query: Query) -> None:
        for table in self.tables.values():
            table.drop(query)

    def _limits(self, query: wire.Query, transport: Transport) -> Limits:
        settings, edns = self._settings, query.edns
        if transport == "tcp":
            size, answers = _MAX_TCP_SIZE, _MAX_TCP_ANSWERS
        elif edns is None or edns.size <= wire.MIN_UDP_SIZE:
            size, answers = wire.MIN_UDP_SIZE, min(_MAX_UDP_ANSWERS, settings.udp_answer_limit)
        else:
            size, answers = min(edns.size, settings.max_udp_size), 0
        return Limits(
            size=size,
            answers=answers,
            edns=edns is not None,
            do=edns is not None and edns.do,
            flags=query.flags & (wire.RD | wire.CD),
            ad=bool(query.flags & wire.AD),
            compress=not settings.disable_compression,
            truncate=settings.enable_truncate,
        )

    def _prepare(
        self, query: wire.Query, found: Found, limits: Limits, *, rotations: int | None = None
    ) -> Prepared:
        options = wire.extended_error(_STALE_ANSWER, found.stale) if found.stale else b""
        return prepare(query, found, limits, self._random, options, rotations=rotations)

    def _singly(self, packet: bytes, query: wire.Query, found: Found, limits: Limits) -> Answer:
        """Answer as *limits* have it, and remember nothing: there are as many sizes as an attacker likes."""
        made = self._prepare(query, found, limits, rotations=1)
        self._counts[made.type, made.rcode, made.stale] += 1
        return Answer(packet[:2] + made.next(query.question))

    def _outside(self, packet: bytes, query: wire.Query, limits: Limits, transport: Transport) -> Decision:
        """Decide about a name that others answer for."""
        if query.type in (wire.AXFR, wire.IXFR):
            return self.refuse(query, wire.NOTIMP)
        key, now = key_of(query), self._monotonic()
        kept = self._cache.get(key, now)
        if kept is None:
            forward = Forward(query, limits, self._cache.stale(key, now) is not None)
            why = self._cache.failure(key, now)
            return self.lack(forward, why) if why else forward
        reply = kept.to_wire(query, limits, now)
        question = fold_question(query.question)
        if query.plain and query.question == question:
            prepared = Prepared([reply[2:]], kept.frame.rcode, counted_type(query.type), (_RELAYED,))
            prepared.spliced = 1  # this one
            self.tables[transport].put(question, limits, prepared)
            self.tables[transport].promote(packet[2:], prepared)
        else:
            self._counts[counted_type(query.type), kept.frame.rcode, False] += 1
        # Hot answers go with each tick, so that a name in use comes here every second.
        return Answer(reply, query if kept.due(now) else None)


@functools.lru_cache(_MAX_SHARED)
def _shared(limits: Limits) -> Limits:
    """Return equal limits as one object: each prepared answer keeps what it was limited by."""
    return limits


def _common_size(size: int) -> int:
    return _SIZES[bisect_right(_SIZES, size) - 1]


def _say(relayed: Relayed) -> str:
    return f"upstreams say {wire.rcode_to_text(relayed.frame.rcode)}"

"""The catalogue, followed: subscriptions of ``discovery.engine`` -> facts of the resolver's engine.

    engine thread:  Known ──call_soon_threadsafe──> loop:  engine.learn(query, Fact), waiting requests go on
    inquiries:      the same, once, for what nobody may have heard of

Laws:
- Everything but what the engine and the inquiries call runs on the loop; that only hands over.
- The lists of names and nodes are followed from the start, so that a name that does not exist is known not
  to, and a flood of random names starts no watch.
- A name is followed from the first question for it until nobody asked for a while.
- What stands in no list (other data centres, proxies, gateways, prepared queries) is a stranger, which
  anybody may have made up: it is asked for once, and followed if that leads somewhere, else remembered for a
  second.
- What is too old to be told is forgotten, as if it had never been known.
- Which service has which address is gathered from all nodes when somebody asks for it, and kept for seconds.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from discovery import model
from discovery.engine import Engine as DiscoveryEngine
from discovery.engine import Known
from discovery.errors import DiscoveryError, RegistryTimeout, RequestRejected
from discovery.model import ConnectQuery, IngressQuery, NamesQuery, NodesQuery, PreparedQuery, PreparedResult
from resolver.engine import Engine
from resolver.facts import AddressesQuery, Fact, digest, gather_addresses, nothing
from resolver.inquiries import Inquiries

__all__ = ["Follower"]

log = logging.getLogger("resolver")

_SWEEPS_PER_IDLE: Final = 10
"""How often within the idle time we look for names that nobody asks for: they go a tenth late at most."""
_MAX_STRANGERS: Final = 64
"""Strangers that wait for their turn, as those of a host that has just started: some 100 ms. Requests for
more than these fail at once: waiting, they would take the places of requests for names that exist."""
_MAX_PREPARED: Final = 64
"""Prepared queries followed at a time. One template makes any number of names exist, and each is executed
every second; beyond this, the one asked for the least is given up. It comes back when somebody asks."""
_ADDRESSES_KEPT: Final = 10.0
"""Seconds for which the services' addresses are kept. To gather them costs a request per node, and who asks
for PTR records mostly wants to put a name into a log."""
_MAX_GATHERED: Final = 1_000
"""Nodes of which services are gathered; they take some two seconds."""
_REJECTED_KEPT: Final = 10.0
"""Seconds for which a data centre that Consul does not know is remembered as such, without a watch."""
_NOTHING_KEPT: Final = 1.0
"""Seconds for which a stranger is remembered to lead nowhere; prepared queries are polled as often."""
_MAX_REJECTED: Final = 256
"""Of both at a time; an attacker's names beyond them cost a request each, and no memory."""


@dataclass(slots=True)
class _Followed:
    query: model.Query
    unsubscribe: Callable[[], None] = lambda: None
    waiting: list[Callable[[], None]] = field(default_factory=list)
    """What to call when the first word has come."""
    asked_at: float = 0.0
    served: int = 0
    """The engine's count at the last sweep."""
    expiry: asyncio.TimerHandle | None = None


class Follower:
    """Follows what the engine needs to know."""

    def __init__(
        self,
        discovery: DiscoveryEngine,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        *,
        idle: float,
        max_stale: float,
    ) -> None:
        """Only remember the arguments; ``start`` subscribes.

        Args:
            idle: seconds after which a name that nobody asks for is no longer followed.
            max_stale: seconds for which answers are given that the catalogue cannot confirm any more.
        """
        self._discovery = discovery
        self._engine = engine
        self._loop = loop
        self._idle = idle
        self._max_stale = max_stale
        self._followed: dict[model.Query, _Followed] = {}
        self._gathering: list[Callable[[], None]] = []
        self._addresses_expiry: asyncio.TimerHandle | None = None
        self._rejected: dict[model.Query, asyncio.TimerHandle] = {}
        self._inquiries = Inquiries(discovery.catalogue)
        self._strangers: set[model.Query] = set()  # those that are asked for
        self._sweeper: asyncio.TimerHandle | None = None
        self._stale_since: float | None = None
        self.lag = 0.0
        """Seconds from the last word of the catalogue until the answers had changed."""

    def start(self) -> None:
        for query in (NamesQuery(), NodesQuery()):
            self._follow(query)
        self._sweeper = self._loop.call_later(self._idle / _SWEEPS_PER_IDLE, self._sweep)

    def close(self) -> None:
        """End every subscription. The discovery engine is its owner's to close."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for query in list(self._followed):
            self._unfollow(query)
        self._inquiries.close()
        for timer in (*self._rejected.values(), self._addresses_expiry):
            if timer is not None:
                timer.cancel()

    @property
    def followed(self) -> int:
        """How many catalogue questions are followed."""
        return len(self._followed)

    def stale_for(self, now: float) -> float:
        """Seconds for which the catalogue has not been reachable; 0 when it is."""
        return 0.0 if self._stale_since is None else now - self._stale_since

    def when_known(self, query: model.Query | AddressesQuery, callback: Callable[[], None]) -> bool:
        """Call *callback* as soon as anything is known about *query*, be it that it cannot be asked.

        At once (in the next round of the loop) when it is known already.

        Returns:
            False: there are too many strangers already, and *callback* will not be called.
        """
        if query in self._engine.facts:
            self._loop.call_soon(callback)
            return True
        if isinstance(query, AddressesQuery):
            self._gather(callback)
            return True
        followed = self._followed.get(query)
        if followed is None:
            if self._is_stranger(query):
                if len(self._strangers) >= _MAX_STRANGERS:
                    return False
                followed = self._inquire(query)
            else:
                followed = self._follow(query)
        followed.asked_at = self._loop.time()
        followed.waiting.append(callback)
        return True

    # On the loop --------------------------------------------------------------------------------------------

    def _gather(self, callback: Callable[[], None]) -> None:
        """Read the services of all nodes in a thread, and learn their addresses."""
        self._gathering.append(callback)
        if len(self._gathering) > 1:
            return  # it is under way
        nodes = list(self._engine.facts[NodesQuery()].value.by_name.values())[:_MAX_GATHERED]

        def gather() -> Fact:
            try:
                # One connection for all: an agent accepts 200, and closed ones count for a while.
                with closing(self._discovery.catalogue.connect()) as reader:
                    return Fact(gather_addresses(nodes, reader.read))
            except DiscoveryError as exc:
                return Fact(None, stale=True, why=str(exc), timed_out=isinstance(exc, RegistryTimeout))

        def gathered(future: asyncio.Future[Fact]) -> None:
            self._engine.learn(AddressesQuery(), future.result())
            self._addresses_expiry = self._loop.call_later(
                _ADDRESSES_KEPT, self._engine.forget, AddressesQuery()
            )
            waiting, self._gathering = self._gathering, []
            for callback in waiting:
                callback()

        self._loop.run_in_executor(None, gather).add_done_callback(gathered)

    def _follow(self, query: model.Query) -> _Followed:
        followed = self._followed[query] = _Followed(query, asked_at=self._loop.time())
        self._subscribe(followed)
        return followed

    def _subscribe(self, followed: _Followed) -> None:
        tell = functools.partial(self._hand_over, followed)
        followed.unsubscribe = self._discovery.subscribe(followed.query, tell)

    def _inquire(self, query: model.Query) -> _Followed:
        """Ask for a stranger once; ``_learn`` follows it then, or forgets it."""
        followed = self._followed[query] = _Followed(query, asked_at=self._loop.time())
        self._strangers.add(query)
        names = self._engine.facts.get(NamesQuery())
        if names is not None and names.stale:
            # Whoever asks for it would only wait for the failure that is known already.
            unknown = Fact(None, stale=True, why=names.why, timed_out=names.timed_out)
            self._loop.call_soon(self._learn, followed, unknown, 0.0, False)
        else:
            self._inquiries.ask(query, functools.partial(self._hand_over, followed))
        return followed

    def _hand_over(self, followed: _Followed, known: Known) -> None:
        # In the engine's thread: to digest a list of 10,000 names takes milliseconds that the loop lacks.
        fact = _to_fact(followed.query, known)
        rejected = _is_rejected(followed.query, known)
        try:
            self._loop.call_soon_threadsafe(self._learn, followed, fact, known.fetched_at, rejected)
        except RuntimeError:
            pass  # the loop has been closed meanwhile; nobody is left to tell

    def _learn(self, followed: _Followed, fact: Fact, fetched_at: float, rejected: bool) -> None:
        query = followed.query
        if self._followed.get(query) is not followed:
            return  # a word that was under way when the name was dropped
        if followed.expiry is not None:
            followed.expiry.cancel()
            followed.expiry = None
        before = self._engine.facts.get(query)
        if query == NamesQuery():
            self._tell_transition(before, fact)
        elif query == NodesQuery() and _is_hidden(fact) and not (before and _is_hidden(before)):
            log.warning(
                "%s shows no node, not even its own, so that no name exists: it hides what no token allows; "
                "set CONSUL_HTTP_TOKEN to one with node:read and service:read",
                self._discovery.catalogue.where,
            )
        self._engine.learn(query, fact)
        if not fact.stale:
            self.lag = max(0.0, self._loop.time() - fetched_at)
        was_stranger = query in self._strangers
        self._strangers.discard(query)
        if rejected:
            self._reject(query, _REJECTED_KEPT)
        elif self._leads_nowhere(query, fact):
            self._reject(query, _NOTHING_KEPT)
        elif was_stranger:
            if isinstance(query, PreparedQuery):
                self._make_room(followed)
            self._subscribe(followed)
        elif fact.stale and fact.value is not None:
            # fetched_at and the loop's time are the same clock: time.monotonic.
            delay = max(0.0, fetched_at + self._max_stale - self._loop.time())
            followed.expiry = self._loop.call_later(delay, self._expire, query, fact)
        waiting, followed.waiting = followed.waiting, []
        for callback in waiting:
            callback()

    def _tell_transition(self, before: Fact | None, after: Fact) -> None:
        if before is None or before.stale != after.stale:
            self._stale_since = self._loop.time() if after.stale else None
            if after.stale:
                log.warning("the catalogue cannot be asked: %s", after.why)
            else:
                log.info("the catalogue answers")

    def _reject(self, query: model.Query, kept: float) -> None:
        """Keep in mind for *kept* seconds what the catalogue said to *query*, but free its watch."""
        self._followed.pop(query).unsubscribe()
        while len(self._rejected) >= _MAX_REJECTED:
            oldest = next(iter(self._rejected))
            self._rejected.pop(oldest).cancel()
            self._engine.forget(oldest)

        def forget() -> None:
            del self._rejected[query]
            self._engine.forget(query)

        self._rejected[query] = self._loop.call_later(kept, forget)

    def _expire(self, query: model.Query, fact: Fact) -> None:
        """Stop telling what nobody could confirm for ``max_stale`` seconds."""
        self._engine.learn(query, Fact(None, stale=True, why=fact.why, timed_out=fact.timed_out))

    def _sweep(self) -> None:
        now = self._loop.time()
        for query, followed in list(self._followed.items()):
            if isinstance(query, NamesQuery | NodesQuery) and query.dc is None:
                continue
            served = self._engine.served(query)
            if served != followed.served:
                followed.served, followed.asked_at = served, now
            elif now - followed.asked_at >= self._idle:
                self._unfollow(query)
        self._sweeper = self._loop.call_later(self._idle / _SWEEPS_PER_IDLE, self._sweep)

    def _unfollow(self, query: model.Query) -> None:
        followed = self._followed.pop(query)
        self._strangers.discard(query)
        if followed.expiry is not None:
            followed.expiry.cancel()
        followed.unsubscribe()
        self._engine.forget(query)

    def _is_stranger(self, query: model.Query) -> bool:
        """Whether somebody may have made up what *query* asks for: no list says that it exists."""
        match query:
            case NamesQuery(dc=dc) | NodesQuery(dc=dc):
                return dc is not None
            case ConnectQuery(name=name, dc=dc) | IngressQuery(name=name, dc=dc):
                names = self._engine.facts.get(NamesQuery(dc))
                return names is None or names.value is None or name not in names.value
        return isinstance(query, PreparedQuery)

    def _leads_nowhere(self, query: model.Query, fact: Fact) -> bool:
        if not self._is_stranger(query):
            return False
        if isinstance(query, NamesQuery | NodesQuery):
            return fact.value is None
        return not (fact.value.entries if isinstance(fact.value, PreparedResult) else fact.value)

    def _make_room(self, new: _Followed) -> None:
        """Keep the prepared queries that are followed within their number."""
        prepared = [
            one
            for one in self._followed.values()
            if isinstance(one.query, PreparedQuery) and one.query not in self._strangers and one is not new
        ]
        if len(prepared) >= _MAX_PREPARED:
            # A flood of made-up names asks for each once, and must not push out those in use.
            unused = min(prepared, key=lambda one: (self._engine.served(one.query), one.asked_at))
            self._unfollow(unused.query)


def _is_hidden(nodes: Fact) -> bool:
    """Whether the catalogue's ACLs keep it from us: an agent that shows anything shows itself.

    Consul 1.8 does not say that it filtered an answer.
    """
    return not nodes.stale and nodes.value is not None and not nodes.value.by_name


def _is_rejected(query: model.Query, known: Known) -> bool:
    """Whether Consul finds fault with the question itself: there is no such data centre, or prepared query.

    With all else of its own data centre it finds none. Whoever refuses that is no agent (another program's
    port, HTTP where HTTPS is spoken), and knows nothing of what exists.
    """
    may_be = isinstance(query, PreparedQuery) or query.dc is not None
    return may_be and isinstance(known.error, RequestRejected) and known.value is None


def _to_fact(query: model.Query, known: Known) -> Fact:
    if _is_rejected(query, known):
        return Fact(nothing(query))
    return Fact(
        digest(query, known.value),
        stale=known.stale or known.error is not None,
        why=str(known.error) if known.error is not None else "",
        timed_out=isinstance(known.error, RegistryTimeout),
    )

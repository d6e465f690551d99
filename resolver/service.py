"""What runs on the loop while the resolver serves: decisions are made by ``engine`` and acted on here.

    endpoints ──request──> engine.decide ──┬─ Answer   send it
        ▲                                  ├─ LookUp   follower.when_known, then decide again
        └──────────── send ────────────────┴─ Forward  forwarder.ask, then relay

Laws:
- No sockets of clients, and nothing is decided here.
- A packet costs only itself: whatever goes wrong with one is logged, and the next is served.
- Nothing waits: requests that have to are kept as callbacks with a deadline, and there are only so many.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from random import Random
from typing import Any, Final

from discovery.backends import Catalogue
from discovery.config import Config
from discovery.engine import Engine as DiscoveryEngine
from resolver import host, wire
from resolver.answers import Table
from resolver.config import Endpoint, Settings, SystemUpstreams, without
from resolver.endpoints import Send, TcpConnection
from resolver.engine import Answer, Drop, Engine, Forward, LookUp, Transport
from resolver.facts import AliasQuery, Fact
from resolver.follow import Follower
from resolver.forward import Forwarder, NoUpstream, Routes, Upstream, UpstreamTimeout
from resolver.metrics import Labels, Sample, counter, gauge
from resolver.policy import Policy, Verdict

__all__ = ["Service"]

log = logging.getLogger("resolver")

_REFUSALS: Final = 8
"""TCP connections at a time on which is said that one may not ask; others are closed at once."""
_MAX_WAITING: Final = 10_000
"""Requests that may wait for catalogue or upstreams; more would be answered too late to be of use."""
_STALE_PATIENCE: Final = 1.8
"""Seconds that a client waits for an upstream before it gets an old answer (RFC 8767 section 5)."""
_ALIAS_FAILURE_KEPT: Final = 5.0
"""Seconds for which nothing is known about a host name that no upstream resolved (RFC 2308 section 7: at most
five minutes); asking for each question anew would make each wait."""
_FOREIGN_TOLD: Final = 60.0  # s between two warnings that somebody was refused; a flood is one event


class Service:
    """Everything behind the endpoints. Lives on one loop."""

    def __init__(
        self,
        settings: Settings,
        backend: Catalogue,
        config: Config,
        own: Sequence[Endpoint],
        policy: Policy,
        tls: ssl.SSLContext | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Put everything together; ``start`` begins.

        Args:
            own: what we listen on, so as not to forward to ourselves.
            tls: verifies upstreams over TLS.
        """
        self.loop = loop
        self.policy = policy
        self.tcp_idle = settings.tcp_idle
        self._settings = settings
        self._engine = Engine(
            settings.zone,
            settings.answers,
            monotonic=time.monotonic,
            wall_clock=time.time,
            random=Random(),
        )
        self._discovery = DiscoveryEngine(backend, config)
        self._follower = Follower(
            self._discovery, self._engine, loop, idle=settings.idle, max_stale=settings.max_stale
        )
        self._forwarder = Forwarder(
            _routes(settings, own),
            loop,
            attempt=settings.upstream_attempt,
            total=settings.upstream_total,
            tls=tls,
            learned=self._engine.keep,
        )
        self._connections: set[TcpConnection] = set()
        self._refusals: set[TcpConnection] = set()
        """Connections of those who may not ask."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._refused: Counter[str] = Counter()
        self._foreign_told_at = float("-inf")
        self._until_logged = settings.query_log

    def start(self) -> None:
        self._follower.start()
        self._tick()

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        for connection in [*self._connections, *self._refusals]:
            connection.abort()
        await self._forwarder.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._follower.close()
        # Joins the threads of its watches; they are in blocking reads that have just been interrupted.
        await self.loop.run_in_executor(None, self._discovery.close)

    # Requests ----------------------------------------------------------------------------------------------

    def table(self, transport: Transport) -> Table:
        """Return the prepared answers."""
        return self._engine.tables[transport]

    def admits(self, packet: bytes, source: str, transport: Transport, send: Send) -> bool:
        """Whether to go on with a request of a source without credit at hand; if not, it is dealt with."""
        verdict = self.policy.judge(source)
        if verdict is Verdict.ADMITTED:
            return True
        self._refused[verdict.value] += 1
        query = wire.parse(packet)
        if verdict is Verdict.FOREIGN:
            now = self.loop.time()
            if now - self._foreign_told_at >= _FOREIGN_TOLD:
                self._foreign_told_at = now
                log.warning(
                    "%s may not ask and is refused. To answer it: --allow %s, or its network. "
                    "--allow replaces the default, so name all others who may ask, too",
                    source,
                    source.partition("%")[0],
                )
            if query is not None:
                send(wire.refuse(query, wire.REFUSED))
        elif transport == "udp" and isinstance(query, wire.Query) and self.policy.excessive % 2:
            # Every other one is told to come over TCP, which a forged source cannot; the rest are dropped, so
            # that we send less than we get.
            send(wire.truncated(query))
        return False

    def handle(self, packet: bytes, source: str, transport: Transport, send: Send) -> bool:
        """See to a request that is not answered from the table.

        Returns:
            True: *send* is or will be called, once. False: there is nothing to say to this packet.
        """
        return self._guarded(packet, transport, send, self.loop.time() + self._settings.cold_timeout)

    def sample(self, count: int) -> range:
        """Return which of *count* requests that came now are to be logged, by their numbers among them."""
        every = self._settings.query_log
        if not every:
            return range(0)
        chosen = range(self._until_logged - 1, count, every)
        self._until_logged += len(chosen) * every - count
        return chosen

    def log(self, packet: bytes, source: str) -> None:
        """Log one request, if it is one."""
        query = wire.parse(packet)
        if isinstance(query, wire.Query):
            name = wire.name_to_text(query.name)
            log.info("query %s %s from %s", name, wire.type_to_text(query.type), source)

    def _guarded(self, packet: bytes, transport: Transport, send: Send, deadline: float) -> bool:
        try:
            return self._act(packet, transport, send, deadline)
        except Exception:  # one packet costs only itself, whatever it ran into
            log.exception("a request could not be served: %s", packet[:64].hex())
            query = wire.parse(packet)
            if query is None:
                return False
            send(self._engine.refuse(query, wire.SERVFAIL).reply)
            return True

    def _act(self, packet: bytes, transport: Transport, send: Send, deadline: float) -> bool:
        match self._engine.decide(packet, transport):
            case Answer(reply, refresh):
                send(reply)
                if refresh is not None:
                    self._spawn(self._refresh(refresh))
            case LookUp() | Forward() as decision if self._waiting >= _MAX_WAITING:
                why = f"{_MAX_WAITING} requests are waiting already"
                send(self._engine.fail(decision.query, why, timed_out=True).reply)
            case LookUp() as look_up:
                self._look_up(look_up, packet, transport, send, deadline)
            case Forward() as forward:
                self._waiting += 1
                self._spawn(self._forward(forward, send))
            case Drop():
                return False
        return True

    def _look_up(
        self, look_up: LookUp, packet: bytes, transport: Transport, send: Send, deadline: float
    ) -> None:
        self._waiting += 1
        settled = False

        def settle() -> bool:
            """True for the first of the two ways in which the wait may end."""
            nonlocal settled
            first, settled = not settled, True
            if first:
                timer.cancel()
                self._waiting -= 1
            return first

        def known() -> None:
            if settle():
                self._guarded(packet, transport, send, deadline)

        def give_up(why: str) -> None:
            if settle():
                send(self._engine.fail(look_up.query, why, timed_out=True).reply)

        late = f"the catalogue did not answer within {self._settings.cold_timeout:g} s"
        timer = self.loop.call_at(deadline, give_up, late)
        if isinstance(look_up.need, AliasQuery):
            self._spawn(self._chase(look_up.need, known))
        elif not self._follower.when_known(look_up.need, known):
            give_up("too many names that nobody knows are asked for already")

    async def _chase(self, alias: AliasQuery, known: Callable[[], None]) -> None:
        """Learn from an upstream what a host name of the catalogue resolves to."""
        lifetime: float
        try:
            fact, lifetime = (await self._forwarder.ask(alias.to_query())).to_fact()
        except (NoUpstream, UpstreamTimeout, wire.Malformed) as exc:
            # The name itself can still be told; who asked may know somebody who resolves it.
            log.debug("the alias %s is not resolved: %s", wire.name_to_text(alias.name), exc)
            fact, lifetime = Fact(()), _ALIAS_FAILURE_KEPT
        self._engine.learn(alias, fact)
        self.loop.call_later(lifetime, self._engine.forget, alias)
        known()

    async def _forward(self, forward: Forward, send: Send) -> None:
        """Answer with what an upstream says, or with what is left when none does."""
        try:
            async with asyncio.timeout(_STALE_PATIENCE if forward.stale else None):
                answer = self._engine.relay(forward, await self._forwarder.ask(forward.query))
        except NoUpstream:
            answer = self._engine.nobody(forward.query)
        except TimeoutError as exc:  # an UpstreamTimeout is one
            answer = self._engine.lack(forward, str(exc) or "upstreams take their time")
        except Exception:  # as in _guarded
            log.exception("a request could not be forwarded: %s", forward.query.question.hex())
            answer = self._engine.refuse(forward.query, wire.SERVFAIL)
        finally:
            self._waiting -= 1
        send(answer.reply)

    async def _refresh(self, query: wire.Query) -> None:
        """Fetch anew what is asked for and about to expire."""
        try:
            await self._forwarder.ask(query)
        except (NoUpstream, UpstreamTimeout) as exc:
            log.debug("%s is not fetched anew: %s", wire.name_to_text(query.name), exc)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    def _tick(self) -> None:
        self._engine.tick()
        self.policy.tick()
        self._ticker = self.loop.call_later(1.0, self._tick)

    # Connections --------------------------------------------------------------------------------------------

    def connected(self, connection: TcpConnection) -> bool:
        """Count *connection*; False when it is one too many."""
        settings = self._settings
        counted, most = self._connections, settings.tcp_connections
        if not self.policy.allows(connection.source):
            # To be refused needs a place, too, and must not cost one of those who may ask.
            counted, most = self._refusals, _REFUSALS
        from_there = sum(one.source == connection.source for one in counted)
        if len(counted) >= most or from_there >= settings.tcp_per_source:
            return False
        counted.add(connection)
        return True

    def disconnected(self, connection: TcpConnection) -> None:
        self._connections.discard(connection)
        self._refusals.discard(connection)

    # Metrics ------------------------------------------------------------------------------------------------

    def samples(self) -> Iterator[Sample]:
        """What there is to know about this resolver now."""
        engine, follower = self._engine, self._follower
        answers: Counter[Labels] = Counter()
        stale = total = 0
        for (qtype, rcode, is_stale), count in engine.counts().items():
            total += count
            stale += count if is_stale else 0
            # A label for each number that somebody may send would be a flood's way into the monitoring.
            kind = wire.type_to_text(qtype) if qtype in wire.KNOWN_TYPES else "other"
            answers[("rcode", wire.rcode_to_text(rcode)), ("type", kind)] += count
        yield counter("answers_total", "Answers given, by type and rcode.", answers)
        yield counter("stale_answers_total", "Answers that nobody could confirm.", stale)
        yield counter("hits_total", "Requests answered from the hot table.", max(0, total - engine.decided))
        yield counter("misses_total", "Requests that had to be decided.", engine.decided)
        refused: Counter[Labels] = Counter()
        for why, count in self._refused.items():
            refused[(("why", why),)] = count
        yield counter("refused_total", "Requests that policy turned away.", refused)

        prepared = {str(transport): len(table) for transport, table in engine.tables.items()}
        yield gauge("prepared_answers", "Answers kept ready.", prepared, label="transport")
        yield gauge("relayed_replies", "Replies of upstreams that are kept.", engine.relayed)
        yield gauge("waiting_requests", "Requests that wait for an answer.", self._waiting)
        yield gauge("tcp_connections", "Connections of clients.", len(self._connections))

        yield gauge("followed_queries", "Catalogue questions followed.", follower.followed)
        yield gauge("watch_lag_seconds", "From the catalogue's last word to changed answers.", follower.lag)
        away = follower.stale_for(self.loop.time())
        yield gauge("catalogue_stale_seconds", "Since when it cannot be asked; 0: it can.", away)

        health = {str(upstream): state for upstream, state in self._forwarder.health.items()}
        rtts = {upstream: state.rtt for upstream, state in health.items() if state.rtt is not None}
        yield gauge("upstream_rtt_seconds", "Time an upstream takes, smoothed.", rtts, label="upstream")
        failures = {upstream: state.failures for upstream, state in health.items()}
        yield gauge("upstream_failures", "Failures in a row; 0: it answers.", failures, label="upstream")


def _routes(settings: Settings, own: Sequence[Endpoint]) -> Routes:
    """Who is asked for which names; never ourselves."""

    def others(upstreams: Sequence[Upstream]) -> tuple[Upstream, ...]:
        kept = without(upstreams, own, host.addresses)
        for one in set(upstreams) - set(kept):
            log.warning("upstream %s is this resolver itself; it is left out", one)
        return kept

    forward = {domain: others(upstreams) for domain, upstreams in settings.forward.items()}
    if settings.upstreams is None:
        system = SystemUpstreams(own, host.addresses)
        return Routes(lambda: system.get(time.monotonic()), forward)
    fixed = others(settings.upstreams)
    return Routes(lambda: fixed, forward)

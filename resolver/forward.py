"""Questions that others answer: which upstream is asked, how it is asked, and when to give up.

    ask ── equal question under way? ── wait for that one                     (RFC 5452 section 5)
     └──── upstreams of the longest matching domain
             └─ first ── UDP ── cut (TC)? ── TCP ──┬─ reply
                  │                                ├─ SERVFAIL, REFUSED, FORMERR, NOTIMP: next
                  └─ patience over: the next is asked, too; the first good reply counts

Laws:
- A reply counts only when it comes from the address asked, on the port the question left from, with its id
  and its question (RFC 5452 section 9); everything else is ignored, and the wait goes on.
- Each question leaves with a random id from a fresh random port: to guess both is to guess 2^32.
- One request costs its client at most ``total`` seconds, whatever upstreams do.
- An upstream that failed is asked last until a probe shows that it answers again: no client's question has to
  find that out.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from discovery.errors import DiscoveryError
from resolver import wire
from resolver.cache import Key, Relayed, key_of
from resolver.wire import Malformed, Name, fold_question

__all__ = ["Forwarder", "Health", "NoUpstream", "Routes", "Upstream", "UpstreamTimeout", "order"]

log = logging.getLogger("resolver")

_MAX_REPLY: Final = 65_535  # octets; no DNS message is longer
_MAX_UNDER_WAY: Final = 2_000
"""Different questions asked of upstreams at a time. Each holds a socket, and descriptors are few."""
_ROUND_PAUSE: Final = 0.1  # s between asking all upstreams and asking all of them again
_PATIENCE_MIN: Final = 0.05
_PATIENCE_MAX: Final = 0.4
"""Seconds until a second upstream is asked as well: four times what the first usually takes, in these bounds.
Less would double the load on upstreams for nothing, more would be felt."""
_RETRY_MIN: Final = 1.0
_RETRY_MAX: Final = 30.0
"""Seconds until an upstream that failed is probed, doubling with each failure."""
_STREAM_IDLE: Final = 10.0
"""Seconds for which a connection to an upstream is kept for the next question (RFC 7766 section 6.2.3)."""
_PROBE: Final = wire.Query.of(Name(()), wire.NS)
"""What every upstream can answer: the name servers of the root."""


class NoUpstream(DiscoveryError):
    """There is nobody to forward to."""


class UpstreamTimeout(DiscoveryError, TimeoutError):
    """No upstream answered in time."""


@dataclass(frozen=True, slots=True, order=True)
class Upstream:
    """A server that answers for the rest of the world."""

    host: str
    port: int = 53
    tls: bool = False
    """DNS over TLS (RFC 7858)."""
    tls_name: str = ""
    """The name that its certificate must carry; empty: its address."""

    def __str__(self) -> str:
        address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        name = f"#{self.tls_name}" if self.tls_name else ""
        return f"tls://{address}{name}" if self.tls else address


@dataclass(frozen=True, slots=True)
class Routes:
    """Who is asked for which names."""

    default: Callable[[], Sequence[Upstream]]
    """For all others; a function, because resolv.conf may change."""
    domains: Mapping[Name, tuple[Upstream, ...]] = field(default_factory=dict)
    """For names in these domains, which are in lower case; the longest counts."""

    def upstreams(self, name: Name) -> Sequence[Upstream]:
        labels = tuple(label.lower() for label in name)
        for start in range(len(labels) + 1):
            if (found := self.domains.get(Name(labels[start:]))) is not None:
                return found
        return self.default()


@dataclass(frozen=True, slots=True)
class Health:
    """What is remembered of one upstream."""

    rtt: float | None = None
    """Seconds that it takes to answer, smoothed as TCP does it (RFC 6298 section 2); None: not known."""
    failures: int = 0
    """In a row."""

    @property
    def patience(self) -> float:
        """Seconds until asking somebody else, too."""
        return _PATIENCE_MAX if self.rtt is None else min(max(4 * self.rtt, _PATIENCE_MIN), _PATIENCE_MAX)

    @property
    def pause(self) -> float:
        """Seconds from the last failure until the next probe."""
        return min(_RETRY_MIN * 2.0 ** max(0, self.failures - 1), _RETRY_MAX)

    def failed(self) -> Health:
        return Health(self.rtt, min(self.failures + 1, 16))

    def answered(self, seconds: float) -> Health:
        return Health(seconds if self.rtt is None else self.rtt * 7 / 8 + seconds / 8)


_UNKNOWN: Final = Health()


def order(upstreams: Iterable[Upstream], health: Mapping[Upstream, Health]) -> list[Upstream]:
    """Return *upstreams* in the order in which to ask them: as listed, those that fail last.

    None is left out: when all have failed, one that may be back is better than none.
    """
    return sorted(upstreams, key=lambda one: health.get(one, _UNKNOWN).failures > 0)


class Forwarder:
    """Asks upstreams. Lives on one loop."""

    def __init__(
        self,
        routes: Routes,
        loop: asyncio.AbstractEventLoop,
        *,
        attempt: float,
        total: float,
        tls: ssl.SSLContext | None = None,
        learned: Callable[[wire.Query, Relayed | UpstreamTimeout], None] = lambda *_: None,
    ) -> None:
        """Only remember the arguments.

        Args:
            attempt: seconds that one upstream gets.
            total: seconds for all attempts together.
            tls: verifies upstreams over TLS; None when there are none.
            learned: called once with what came of each question, however many wait for it.
        """
        self._routes = routes
        self._loop = loop
        self._attempt = attempt
        self._total = total
        self._tls = tls
        self._learned = learned
        self.health: dict[Upstream, Health] = {}
        self._under_way: dict[Key, asyncio.Task[Relayed]] = {}
        self._streams: dict[Upstream, _Stream] = {}
        self._probes: dict[Upstream, asyncio.TimerHandle] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def ask(self, query: wire.Query) -> Relayed:
        """Return what an upstream says to *query*.

        Raises:
            NoUpstream: there is none.
            UpstreamTimeout: no answer in ``total`` seconds.
        """
        key = key_of(query)
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= _MAX_UNDER_WAY:
                raise UpstreamTimeout(f"{_MAX_UNDER_WAY} questions are waiting for upstreams already")
            # RFC 5452 section 5: equal questions in flight multiply a forger's chances.
            task = self._under_way[key] = self._loop.create_task(self._ask_all(query))

            def done(task: asyncio.Task[Relayed]) -> None:
                del self._under_way[key]
                if not task.cancelled():
                    error = task.exception()
                    if error is None:
                        self._learned(query, task.result())
                    elif isinstance(error, UpstreamTimeout):
                        self._learned(query, error)

            task.add_done_callback(done)
        # Shielded: one client that goes away must not take the answer from the others.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up all questions under way."""
        for probe in self._probes.values():
            probe.cancel()
        tasks = [*self._under_way.values(), *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in list(self._streams.values()):
            await stream.close()

    # Choosing ----------------------------------------------------------------------------------------------

    async def _ask_all(self, query: wire.Query) -> Relayed:
        upstreams = self._routes.upstreams(query.name)
        if not upstreams:
            raise NoUpstream("no upstream is configured: give --upstream, or nameservers in /etc/resolv.conf")
        deadline = self._loop.time() + self._total
        last: Relayed | None = None
        while last is None and (left := deadline - self._loop.time()) > 0:
            good, last = await self._round(query, order(upstreams, self.health), left)
            if good is not None:
                return good
            if last is None:
                # A refused connection fails at once; without a pause such rounds would spin.
                await asyncio.sleep(min(_ROUND_PAUSE, max(0.0, deadline - self._loop.time())))
        if last is not None:
            return last
        raise UpstreamTimeout(f"no answer from {', '.join(map(str, upstreams))} in {self._total:g} s")

    async def _round(
        self, query: wire.Query, upstreams: Sequence[Upstream], left: float
    ) -> tuple[Relayed | None, Relayed | None]:
        """Ask *upstreams* one after the other, each as soon as the one before failed or took its time.

        Returns:
            (the reply that counts, else the last that does not)
        """
        ends = self._loop.time() + left
        waiting = list(upstreams)
        asked: dict[asyncio.Future[Relayed], tuple[Upstream, float]] = {}
        last: Relayed | None = None
        patience = self._attempt
        try:
            while waiting or asked:
                now = self._loop.time()
                if now >= ends:
                    break
                if waiting:
                    upstream = waiting.pop(0)
                    asked[self._start(upstream, query)] = (upstream, now)
                    patience = self.health.get(upstream, _UNKNOWN).patience if waiting else self._attempt
                expiry = min(started for _, started in asked.values()) + self._attempt
                limit = min(now + patience, expiry, ends)
                done, _ = await asyncio.wait(
                    asked, timeout=max(0.0, limit - now), return_when=asyncio.FIRST_COMPLETED
                )
                now = self._loop.time()
                for future in done:
                    upstream, started = asked.pop(future)
                    error = future.exception()
                    if isinstance(error, OSError | ssl.SSLError | EOFError):
                        self._failed(upstream, error)
                        continue
                    relayed = future.result()
                    self._answered(upstream, now - started)
                    if relayed.frame.rcode not in wire.FAILURES:
                        for slower, (one, since) in asked.items():
                            self._in_background(self._see_out(one, slower, since))
                        asked.clear()
                        return relayed, None
                    last = relayed
                for future, (upstream, started) in list(asked.items()):
                    if now - started >= self._attempt:
                        future.cancel()
                        del asked[future]
                        self._failed(upstream, TimeoutError(f"no answer in {self._attempt:g} s"))
            return None, last
        finally:
            for future in asked:
                future.cancel()

    async def _see_out(self, upstream: Upstream, future: asyncio.Future[Relayed], started: float) -> None:
        """Wait for one that another was faster than: was it slow, or is it gone?"""
        try:
            async with asyncio.timeout_at(started + self._attempt):
                await future
        except (OSError, ssl.SSLError, EOFError) as exc:  # a TimeoutError is an OSError
            self._failed(upstream, exc)
        else:
            self._answered(upstream, self._loop.time() - started)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _failed(self, upstream: Upstream, why: BaseException) -> None:
        health = self.health.get(upstream, _UNKNOWN)
        self.health[upstream] = health = health.failed()
        if health.failures == 1:
            log.warning("upstream %s does not answer (%s); others are asked first", upstream, why)
        if upstream not in self._probes:
            self._probes[upstream] = self._loop.call_later(health.pause, self._probe, upstream)

    def _answered(self, upstream: Upstream, seconds: float) -> None:
        health = self.health.get(upstream, _UNKNOWN)
        self.health[upstream] = health.answered(seconds)
        if health.failures:
            log.info("upstream %s answers again", upstream)
            if (probe := self._probes.pop(upstream, None)) is not None:
                probe.cancel()

    def _probe(self, upstream: Upstream) -> None:
        """Ask an upstream that failed whether it is back."""
        del self._probes[upstream]
        self._in_background(self._see_out(upstream, self._start(upstream, _PROBE), self._loop.time()))

    # Asking ------------------------------------------------------------------------------------------------

    def _start(self, upstream: Upstream, query: wire.Query) -> asyncio.Future[Relayed]:
        request = _request(query)
        if upstream.tls:
            return self._loop.create_task(self._over_stream(upstream, request))
        return self._loop.create_task(self._over_udp(upstream, request))

    async def _over_udp(self, upstream: Upstream, request: bytes) -> Relayed:
        family = socket.AF_INET6 if ":" in upstream.host else socket.AF_INET
        # A connected socket of its own: the kernel picks an unpredictable port (RFC 5452 section 9.2) and
        # keeps away what comes from any other address or port (section 9.1).
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((upstream.host, upstream.port))
            sock.send(request)
            while True:
                reply = _match(await self._loop.sock_recv(sock, _MAX_REPLY), request, self._loop.time())
                if reply is not None:
                    break
        if reply.frame.flags & wire.TC:  # RFC 7766 section 5: cut over UDP, so ask over TCP
            return await self._over_stream(upstream, request)
        return reply

    async def _over_stream(self, upstream: Upstream, request: bytes) -> Relayed:
        stream = self._streams.get(upstream)
        if stream is None:
            context = self._tls if upstream.tls else None
            stream = self._streams[upstream] = _Stream(upstream, context, self._loop)
        try:
            return await stream.ask(request)
        except (OSError, EOFError):
            if not stream.worn:
                raise
            # A kept connection that the upstream had closed: not its fault, and a new one will do.
            return await stream.ask(request)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question under way on a stream."""

    request: bytes
    reply: asyncio.Future[Relayed]
    writer: asyncio.StreamWriter
    """Of the connection that it was sent on."""


class _Stream:
    """A TCP or TLS connection to one upstream: opened when needed, shared by questions, closed when idle.

    RFC 7766 section 6.2.1.1: several questions may be under way, and replies come in any order.
    """

    def __init__(
        self, upstream: Upstream, context: ssl.SSLContext | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._upstream = upstream
        self._context = context
        self._loop = loop
        self._opening = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked: dict[bytes, _Asked] = {}  # by id
        self._idle: asyncio.TimerHandle | None = None
        self._heard_at = float("-inf")
        self.worn = False
        """The last failure was of a connection that had answered before."""

    async def ask(self, request: bytes) -> Relayed:
        """Send *request* and return its reply.

        Raises:
            OSError, EOFError, ssl.SSLError: the connection cannot be made, or broke.
        """
        async with self._opening:
            if self._writer is None:
                await self._open()
        writer = self._writer
        if writer is None:
            raise ConnectionError(f"{self._upstream} closed the connection")
        while request[:2] in self._asked:
            request = secrets.token_bytes(2) + request[2:]
        future: asyncio.Future[Relayed] = self._loop.create_future()
        self._asked[request[:2]] = _Asked(request, future, writer)
        asked_at = self._loop.time()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            writer.write(len(request).to_bytes(2) + request)
            return await future
        except asyncio.CancelledError:
            # A connection that something on the way has forgotten (NAT, a restart without a word) swallows
            # questions until the kernel gives up, minutes later.
            if self._heard_at < asked_at and self._writer is writer:
                self._drop()
            raise
        finally:
            self._asked.pop(request[:2], None)
            if not self._asked and self._writer is not None:
                self._idle = self._loop.call_later(_STREAM_IDLE, self._drop)

    async def close(self) -> None:
        self._drop()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _open(self) -> None:
        name = (self._upstream.tls_name or self._upstream.host) if self._context else None
        reader, writer = await asyncio.open_connection(
            self._upstream.host, self._upstream.port, ssl=self._context, server_hostname=name
        )
        self._writer = writer
        self.worn = False
        self._reading = self._loop.create_task(self._read(reader, writer))

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        why: Exception = ConnectionError(f"{self._upstream} closed the connection")
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2))
                raw = await reader.readexactly(length)
                self._heard_at = self._loop.time()
                asked = self._asked.get(raw[:2])
                if asked is not None and not asked.reply.done():
                    reply = _match(raw, asked.request, self._heard_at)
                    if reply is not None:
                        self.worn = True
                        asked.reply.set_result(reply)
        except (OSError, EOFError, ssl.SSLError) as exc:
            why = exc
        finally:
            if self._writer is writer:
                self._drop()
            for asked in self._asked.values():
                if asked.writer is writer and not asked.reply.done():
                    asked.reply.set_exception(why)

    def _drop(self) -> None:
        """Close the connection; the next question opens another."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.abort()


def _match(raw: bytes, request: bytes, now: float) -> Relayed | None:
    """Return the reply if it is one to *request*; a forged or late one is as if it had not come."""
    try:
        reply = Relayed.from_wire(raw, now)
    except Malformed:
        return None
    asked = request[wire.HEADER_LENGTH : wire.HEADER_LENGTH + len(reply.frame.question)]
    same = raw[:2] == request[:2] and fold_question(reply.frame.question) == fold_question(asked)
    return reply if same else None


def _request(query: wire.Query) -> bytes:
    """Return *query* as we ask it: our id, our EDNS, the client's letters (0x20) and nothing else of its.

    The client's options stay behind: a cookie is between it and us (RFC 7873 section 5.1), and its subnet
    would make the reply one that cannot be given to others (RFC 7871 section 7.3).
    """
    do = query.edns is not None and query.edns.do
    flags = wire.RD | (query.flags & (wire.CD | wire.AD))
    return wire.frame(secrets.randbits(16), flags, query.question, (0, 0, 1), wire.opt(do=do))

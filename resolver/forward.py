"""Questions that others answer: which upstream is asked, how it is asked, and when to give up.

    ask ── equal question under way? ── wait for that one                     (RFC 5452 section 5)
     └──── choose upstreams ── UDP ── cut (TC)? ── TCP ── reply
                   ▲             └─ silent, SERVFAIL, REFUSED, FORMERR ─┐
                   └──────────────── next upstream ─────────────────────┘

Laws:
- A reply counts only when it comes from the address asked, on the port the question left from, with its id
  and its question (RFC 5452 section 9); everything else is ignored, and the wait goes on.
- Each question leaves with a random id from a fresh random port: to guess both is to guess 2^32.
- One request costs its client at most ``total`` seconds, whatever upstreams do.
- An upstream that failed is asked last until it answers again, and a fresh attempt shows it when it does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from discovery.errors import DiscoveryError
from resolver import wire
from resolver.cache import Key, Relayed, key_of
from resolver.wire import Malformed, fold_question

__all__ = ["Forwarder", "Health", "NoUpstream", "Upstream", "UpstreamTimeout", "order"]

log = logging.getLogger("resolver")

_MAX_REPLY: Final = 65_535  # octets; no DNS message is longer
_MAX_UNDER_WAY: Final = 2_000
"""Different questions asked of upstreams at a time. Each holds a socket, and a process has at least 1,024 by
default; the limit on open files is raised for it at start."""
_ROUND_PAUSE: Final = 0.1  # s between asking all upstreams and asking all of them again
_RETRY_MIN: Final = 1.0
_RETRY_MAX: Final = 30.0
"""Seconds until an upstream that failed is asked first again, doubling with each failure."""
_PASS_ON: Final = frozenset({wire.FORMERR, wire.SERVFAIL, wire.NOTIMP, wire.REFUSED})
"""What says more about the upstream than about the name, so that another is worth asking."""


class NoUpstream(DiscoveryError):
    """There is nobody to forward to."""


class UpstreamTimeout(DiscoveryError, TimeoutError):
    """No upstream answered in time."""


@dataclass(frozen=True, slots=True, order=True)
class Upstream:
    """A server that answers for the rest of the world."""

    host: str
    port: int = 53

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Health:
    """What is remembered of one upstream."""

    failures: int = 0
    """In a row."""
    retry_at: float = 0.0
    """Monotonic seconds from which it may be asked first again."""

    def failed(self, now: float) -> Health:
        pause = min(_RETRY_MIN * 2**self.failures, _RETRY_MAX)
        return Health(min(self.failures + 1, 16), now + pause)


def order(upstreams: Sequence[Upstream], health: dict[Upstream, Health], now: float) -> list[Upstream]:
    """Return *upstreams* in the order in which to ask them: as listed, those that failed lately last.

    None is left out: when all have failed, one that may be back is better than none.
    """
    return sorted(upstreams, key=lambda one: max(health[one].retry_at - now, 0.0) if one in health else 0.0)


class Forwarder:
    """Asks upstreams. Lives on one loop."""

    def __init__(
        self,
        upstreams: Callable[[], Sequence[Upstream]],
        loop: asyncio.AbstractEventLoop,
        *,
        attempt: float,
        total: float,
    ) -> None:
        """Only remember the arguments.

        Args:
            upstreams: asked before each question, because resolv.conf may change.
            attempt: seconds that one upstream gets.
            total: seconds for all attempts together.
        """
        self._upstreams = upstreams
        self._loop = loop
        self._attempt = attempt
        self._total = total
        self._health: dict[Upstream, Health] = {}
        self._under_way: dict[Key, asyncio.Task[Relayed]] = {}

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
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # Shielded: one client that goes away must not take the answer from the others.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up all questions under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_all(self, query: wire.Query) -> Relayed:
        upstreams = self._upstreams()
        if not upstreams:
            raise NoUpstream("no upstream is configured: give --upstream, or nameservers in /etc/resolv.conf")
        deadline = self._loop.time() + self._total
        last: Relayed | None = None
        while last is None and self._loop.time() < deadline:
            for upstream in order(upstreams, self._health, self._loop.time()):
                try:
                    async with asyncio.timeout(min(self._attempt, deadline - self._loop.time())):
                        relayed = await self._ask_one(upstream, query)
                except (OSError, TimeoutError) as exc:
                    self._failed(upstream, exc)
                    continue
                self._answered(upstream)
                if relayed.frame.rcode not in _PASS_ON:
                    return relayed
                last = relayed
            # A refused connection fails at once; without a pause such rounds would spin.
            await asyncio.sleep(min(_ROUND_PAUSE, max(0.0, deadline - self._loop.time())))
        if last is not None:
            return last
        raise UpstreamTimeout(f"no answer from {', '.join(map(str, upstreams))} in {self._total:g} s")

    async def _ask_one(self, upstream: Upstream, query: wire.Query) -> Relayed:
        request = _request(query)
        reply = await self._over_udp(upstream, request)
        if reply.frame.flags & wire.TC:  # RFC 7766 section 5: cut over UDP, so ask over TCP
            reply = await self._over_tcp(upstream, request)
        return reply

    async def _over_udp(self, upstream: Upstream, request: bytes) -> Relayed:
        family = socket.AF_INET6 if ":" in upstream.host else socket.AF_INET
        # A connected socket of its own: the kernel picks an unpredictable port (RFC 5452 section 9.2) and
        # keeps away what comes from any other address or port (section 9.1).
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as sock:
            sock.setblocking(False)
            sock.connect((upstream.host, upstream.port))
            sock.send(request)
            while True:
                reply = self._match(await self._loop.sock_recv(sock, _MAX_REPLY), request)
                if reply is not None:
                    return reply

    async def _over_tcp(self, upstream: Upstream, request: bytes) -> Relayed:
        reader, writer = await asyncio.open_connection(upstream.host, upstream.port)
        try:
            writer.write(len(request).to_bytes(2) + request)
            while True:
                length = int.from_bytes(await reader.readexactly(2))
                reply = self._match(await reader.readexactly(length), request)
                if reply is not None:
                    return reply
        except asyncio.IncompleteReadError as exc:
            raise ConnectionError(f"{upstream} closed the connection before its reply was whole") from exc
        finally:
            writer.close()

    def _match(self, raw: bytes, request: bytes) -> Relayed | None:
        """Return the reply if it is one to *request*; a forged or late one is as if it had not come."""
        try:
            reply = Relayed.from_wire(raw, self._loop.time())
        except Malformed:
            return None
        asked = request[wire.HEADER_LENGTH : wire.HEADER_LENGTH + len(reply.frame.question)]
        same = raw[:2] == request[:2] and fold_question(reply.frame.question) == fold_question(asked)
        return reply if same else None

    def _failed(self, upstream: Upstream, why: Exception) -> None:
        health = self._health.get(upstream, Health())
        if health.failures == 0:
            log.warning(
                "upstream %s does not answer (%s); others are asked first", upstream, why or "time-out"
            )
        self._health[upstream] = health.failed(self._loop.time())

    def _answered(self, upstream: Upstream) -> None:
        if self._health.pop(upstream, None) is not None:
            log.info("upstream %s answers again", upstream)


def _request(query: wire.Query) -> bytes:
    """Return *query* as we ask it: our id, our EDNS, the client's letters (0x20) and nothing else of its.

    The client's options stay behind: a cookie is between it and us (RFC 7873 section 5.1), and its subnet
    would make the reply one that cannot be given to others (RFC 7871 section 7.3).
    """
    do = query.edns is not None and query.edns.do
    flags = wire.RD | (query.flags & (wire.CD | wire.AD))
    return wire.frame(secrets.randbits(16), flags, query.question, (0, 0, 1), wire.opt(do=do))

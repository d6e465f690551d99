"""The sockets: requests in, replies out, over UDP and TCP.

    UDP  recvfrom ── hot table ── sendto                 the common case: nothing else happens
              └ miss ── engine.decide ── send | follower | forwarder
    TCP  the same, framed by lengths (RFC 1035 section 4.2.2)

Laws:
- The only module with sockets of clients. It decides nothing.
- A packet costs only itself: whatever goes wrong with one is logged, and the next is served.
- Nothing here waits. Requests that have to wait are kept as callbacks with a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import logging
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import ip_address
from random import Random
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

from discovery.backends import Catalogue
from discovery.config import Config
from discovery.engine import Engine as DiscoveryEngine
from discovery.errors import ConfigurationError
from resolver import wire
from resolver.config import Endpoint, Settings, SystemUpstreams, without
from resolver.engine import Answer, Drop, Engine, Forward, LookUp, Transport
from resolver.facts import AliasQuery, Fact
from resolver.follow import Follower
from resolver.forward import Forwarder, NoUpstream, Routes, Upstream, UpstreamTimeout

__all__ = ["Resolver"]

log = logging.getLogger("resolver")

_MAX_REQUEST: Final = 4096  # octets; a question with all options in use stays far below
_BATCH: Final = 64
"""Packets taken from one socket before the loop sees to the others: 64 take half a millisecond."""
_RECEIVE_BUFFER: Final = 4 << 20
"""Octets asked of the kernel for requests that wait. The default of 208 KiB overflows in the milliseconds in
which another thread may hold the interpreter."""
_MAX_WAITING: Final = 10_000
"""Requests that may wait for catalogue or upstreams; more would be answered too late to be of use."""
_ALIAS_FAILURE_KEPT: Final = 5.0
"""Seconds for which nothing is known about a host name that no upstream resolved (RFC 2308 section 7: at most
five minutes); asking for each question anew would make each wait."""
_STALE_PATIENCE: Final = 1.8
"""Seconds that a client waits for an upstream before it gets an old answer (RFC 8767 section 5)."""
_TCP_PIPELINE: Final = 128
"""Requests of one connection that may wait for answers; then it is not read from until some are given."""
_START_TIMEOUT: Final = 10.0  # s for the thread to come up

Send = Callable[[bytes], None]


class Resolver:
    """A DNS server on the addresses of *settings*, answering from *backend*.

    with Resolver(settings, backend) as resolver:     # in a thread of its own
        resolver.addresses                            # what it listens on; port 0 became a real one

    Resolver(settings, backend).run()                 # in this thread, until SIGTERM or SIGINT
    """

    def __init__(self, settings: Settings, backend: Catalogue, *, config: Config | None = None) -> None:
        """Only remember the arguments.

        Args:
            backend: where names come from; the caller closes it.
            config: of the discovery client (watches, waits); None: its defaults.
        """
        self._settings = settings
        self._backend = backend
        self._config = config or Config()
        self._sockets: list[tuple[socket.socket, socket.socket]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._tls: ssl.SSLContext | None = None
        self.addresses: tuple[Endpoint, ...] = ()

    def start(self) -> Self:
        """Bind, and serve in a thread; return once questions are answered.

        Raises:
            ConfigurationError: an address cannot be bound, or a file not be read; the message says which
                and what to do.
        """
        self._bind()
        serving = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(serving.set)), name="resolver", daemon=True
        )
        self._thread.start()
        serving.wait(_START_TIMEOUT)
        return self

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Bind, and serve in this thread (the main one) until SIGTERM, SIGINT or ``close``.

        Args:
            ready: called once questions are answered.
        """
        self._bind()

        def serving() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._ask_to_stop)
            ready()

        asyncio.run(self._serve(serving))

    def close(self) -> None:
        """Stop serving and close every socket; idempotent. Callable from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._ask_to_stop)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._close_sockets()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask_to_stop(self) -> None:
        if self._stop is not None:
            self._stop.set()

    def _bind(self) -> None:
        self._tls = _tls_context(self._settings)
        try:
            for endpoint in self._settings.listen:
                self._sockets.append(_bind(endpoint))
        except ConfigurationError:
            self._close_sockets()
            raise
        self.addresses = tuple(Endpoint(*udp.getsockname()[:2]) for udp, _ in self._sockets)

    def _close_sockets(self) -> None:
        for pair in self._sockets:
            for sock in pair:
                sock.close()
        self._sockets.clear()

    async def _serve(self, serving: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        service = _Service(self._settings, self._backend, self._config, self.addresses, self._tls, self._loop)
        try:
            await service.open(self._sockets)
            serving()
            await self._stop.wait()
        finally:
            await service.close()
            self._close_sockets()


class _Service:
    """What runs on the loop while the resolver serves."""

    def __init__(
        self,
        settings: Settings,
        backend: Catalogue,
        config: Config,
        own: Sequence[Endpoint],
        tls: ssl.SSLContext | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.settings = settings
        self._loop = loop
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
            Routes(_upstreams(settings, own), settings.forward),
            loop,
            attempt=settings.upstream_attempt,
            total=settings.upstream_total,
            tls=tls,
            learned=self._engine.keep,
        )
        self._udp: list[_UdpEndpoint] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[_TcpConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._ticker: asyncio.TimerHandle | None = None

    async def open(self, sockets: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        self._follower.start()
        for udp, tcp in sockets:
            endpoint = _UdpEndpoint(udp, self)
            self._udp.append(endpoint)
            self._loop.add_reader(udp, endpoint.drain)
            server = await self._loop.create_server(lambda: _TcpConnection(self), sock=tcp)
            self._servers.append(server)
        self._tick()

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        for endpoint in self._udp:
            self._loop.remove_reader(endpoint.sock)
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._forwarder.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._follower.close()
        # Joins the threads of its watches; they are in blocking reads that have just been interrupted.
        await self._loop.run_in_executor(None, self._discovery.close)

    # Requests ----------------------------------------------------------------------------------------------

    def hot(self, transport: Transport) -> Any:
        return self._engine.tables[transport]

    def handle(self, packet: bytes, transport: Transport, send: Send) -> bool:
        """See to a request that the hot table does not know.

        Returns:
            True: *send* is or will be called, once. False: there is nothing to say to this packet.
        """
        return self._guarded(packet, transport, send, self._loop.time() + self.settings.cold_timeout)

    def _guarded(self, packet: bytes, transport: Transport, send: Send, deadline: float) -> bool:
        try:
            return self._act(packet, transport, send, deadline)
        except Exception:  # one packet costs only itself, whatever it ran into
            log.exception("a request could not be served: %s", packet[:64].hex())
            query = wire.parse(packet)
            if query is None:
                return False
            send(wire.refuse(query, wire.SERVFAIL))
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

        def give_up() -> None:
            if settle():
                why = f"the catalogue did not answer within {self.settings.cold_timeout:g} s"
                send(self._engine.fail(look_up.query, why, timed_out=True).reply)

        timer = self._loop.call_at(deadline, give_up)
        if isinstance(look_up.need, AliasQuery):
            self._spawn(self._chase(look_up.need, known))
        else:
            self._follower.when_known(look_up.need, known)

    async def _chase(self, alias: AliasQuery, known: Callable[[], None]) -> None:
        """Learn from an upstream what a host name of the catalogue resolves to."""
        lifetime: float
        try:
            fact, lifetime = (await self._forwarder.ask(alias.to_query())).to_fact()
        except (NoUpstream, UpstreamTimeout) as exc:
            # The name itself can still be told; who asked may know somebody who resolves it.
            log.debug("the alias %s is not resolved: %s", wire.name_to_text(alias.name), exc)
            fact, lifetime = Fact(()), _ALIAS_FAILURE_KEPT
        self._engine.learn(alias, fact)
        self._loop.call_later(lifetime, self._engine.forget, alias)
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
            answer = Answer(wire.refuse(forward.query, wire.SERVFAIL))
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
        task = self._loop.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    def _tick(self) -> None:
        self._engine.tick()
        self._ticker = self._loop.call_later(1.0, self._tick)

    # TCP ---------------------------------------------------------------------------------------------------

    def connected(self, connection: _TcpConnection) -> bool:
        """Count *connection*; False when there are too many and it is to be closed."""
        if len(self._connections) >= self.settings.tcp_connections:
            return False
        self._connections.add(connection)
        return True

    def disconnected(self, connection: _TcpConnection) -> None:
        self._connections.discard(connection)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop


class _Datagrams(Protocol):
    """Where the hot loop gets requests and leaves replies; a socket is one."""

    def recvfrom(self, size: int, /) -> tuple[bytes, Any]:
        """Return a request and where to reply; raise OSError when there is none."""

    def sendto(self, reply: bytes, where: Any, /) -> object:
        """Reply to where ``recvfrom`` said."""


class _WildcardDatagrams:
    """A UDP socket bound to all addresses, whose replies leave from the address that was asked.

    Left to itself the kernel picks the address by the route back, and a client that asked another one drops
    the reply (RFC 2181 section 4.1).
    """

    _IP_PKTINFO: Final = 8  # of Linux; Python does not name it
    _SPACE: Final = socket.CMSG_SPACE(20)  # struct in6_pktinfo, the larger of the two

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, self._IP_PKTINFO, 1)

    def recvfrom(self, size: int, /) -> tuple[bytes, Any]:
        packet, ancillary, _, client = self._sock.recvmsg(size, self._SPACE)
        replies = []
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == self._IP_PKTINFO:
                # struct in_pktinfo: interface, local address, destination. Interface 0: as routes say.
                replies.append((level, kind, bytes(4) + data[4:8] + bytes(4)))
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                replies.append((level, kind, data))
        return packet, (replies, client)

    def sendto(self, reply: bytes, where: Any, /) -> object:
        ancillary, client = where
        return self._sock.sendmsg([reply], ancillary, 0, client)


class _UdpEndpoint:
    """One UDP socket and its hot loop."""

    def __init__(self, sock: socket.socket, service: _Service) -> None:
        self.sock = sock
        wildcard = ip_address(sock.getsockname()[0]).is_unspecified and sys.platform == "linux"
        self._datagrams: _Datagrams = _WildcardDatagrams(sock) if wildcard else sock
        self._service = service
        self._table = service.hot("udp")

    def drain(self) -> None:
        """Answer what waits in the socket.

        asyncio's own datagram transport costs four times as much: a callback, a queue and a wake-up for each
        packet. Here a wake-up serves a batch, and a known question costs a look-up and two system calls.
        """
        recvfrom, sendto, hot = self._datagrams.recvfrom, self._datagrams.sendto, self._table.hot.get
        for _ in range(_BATCH):
            try:
                packet, client = recvfrom(_MAX_REQUEST)
            except OSError:  # BlockingIOError: all are served; others concern a packet that is gone
                return
            ready = hot(packet[2:])
            if ready is None:
                self._service.handle(packet, "udp", functools.partial(self._send, client))
                continue
            try:
                reply = ready()
            except StopIteration:
                reply = self._table.wind_up(packet[2:])
            try:
                sendto(packet[:2] + reply, client)
            except OSError:
                pass  # as in _send

    def _send(self, client: Any, reply: bytes) -> None:
        try:
            self._datagrams.sendto(reply, client)
        except OSError:
            pass  # the client's network is gone or the queue is full; over UDP the client asks again


class _TcpConnection(asyncio.Protocol):
    """One TCP connection: requests with their lengths in front, pipelined, answered as they are ready."""

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._table = service.hot("tcp")
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._waiting = 0
        self._active_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._service.connected(self):
            self._transport.abort()
            return
        self._active_at = self._service.loop.time()
        self._timer = self._service.loop.call_later(self._service.settings.tcp_idle, self._check_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.disconnected(self)
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 2:
            length = int.from_bytes(self._received[:2])
            if len(self._received) < 2 + length:
                return
            packet = bytes(self._received[2 : 2 + length])
            del self._received[: 2 + length]
            # Only whole requests count: a byte now and then must not keep a connection.
            self._active_at = self._service.loop.time()
            self._request(packet)

    def eof_received(self) -> bool:
        # A client may close its side after its last question and still wait for the answer.
        return self._waiting > 0

    def pause_writing(self) -> None:
        # A client that does not read its answers gets no more of them made.
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None and self._waiting < _TCP_PIPELINE:
            self._transport.resume_reading()

    def _request(self, packet: bytes) -> None:
        ready = self._table.hot.get(packet[2:])
        if ready is not None:
            try:
                reply = ready()
            except StopIteration:
                reply = self._table.wind_up(packet[2:])
            self._write(packet[:2] + reply)
            return
        self._waiting += 1
        if self._waiting >= _TCP_PIPELINE and self._transport is not None:
            self._transport.pause_reading()
        if not self._service.handle(packet, "tcp", self._answer):
            # No request at all: the framing is lost, or somebody tries what happens (RFC 7766 section 8).
            self.abort()

    def _answer(self, reply: bytes) -> None:
        self._waiting -= 1
        if self._waiting < _TCP_PIPELINE and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._write(reply)

    def _write(self, reply: bytes) -> None:
        if self._transport is not None:
            # One write, so that length and message leave in one segment (RFC 7766 section 8).
            self._transport.write(len(reply).to_bytes(2) + reply)

    def _check_idle(self) -> None:
        loop, limit = self._service.loop, self._service.settings.tcp_idle
        idle = loop.time() - self._active_at
        if idle >= limit and not self._waiting:
            if self._transport is not None:
                self._transport.close()
            return
        self._timer = loop.call_later(max(limit / 10, limit - idle), self._check_idle)


# --- binding ---------------------------------------------------------------------------------------------


def _bind(endpoint: Endpoint) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a TCP socket on *endpoint*, on the same port also when it asks for any (0).

    Raises:
        ConfigurationError: it cannot be bound.
    """
    attempts = 1 if endpoint.port else 20  # another process may have the TCP port of the free UDP port
    while True:
        attempts -= 1
        with contextlib.ExitStack() as opened:
            family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
            try:
                udp = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                tcp = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
                if family == socket.AF_INET6:
                    for sock in (udp, tcp):
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
                udp.bind((endpoint.host, endpoint.port))
                # A restart must not wait for connections of the last run to time out.
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind((endpoint.host, udp.getsockname()[1]))
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE and attempts:
                    continue
                raise ConfigurationError(_explain(endpoint, exc)) from exc
            udp.setblocking(False)
            tcp.setblocking(False)
            opened.pop_all()
            return udp, tcp


def _explain(endpoint: Endpoint, exc: OSError) -> str:
    wrong = f"cannot listen on {endpoint}"
    match exc.errno:
        case errno.EADDRINUSE:
            return (
                f"{wrong}: another process has that port (often systemd-resolved or dnsmasq; "
                f"`ss -ulpn sport = :{endpoint.port}` names it); stop it, or give another --listen"
            )
        case errno.EACCES:
            return (
                f"{wrong}: ports below 1024 need root or CAP_NET_BIND_SERVICE; "
                "give one of them, or a --listen with a higher port"
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"{wrong}: no interface of this host has that address; "
                "is it up (docker0 comes with the Docker daemon)? `ip address` lists them"
            )
    return f"{wrong}: {exc.strerror}"


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what verifies upstreams over TLS; reading the system's authorities takes tens of milliseconds.

    Raises:
        ConfigurationError: the authorities cannot be read.
    """
    everybody = itertools.chain(settings.upstreams or (), *settings.forward.values())
    if not any(one.tls for one in everybody):
        return None
    try:
        return ssl.create_default_context(cafile=settings.upstream_ca)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigurationError(
            f"cannot read the certificate authorities in --upstream-ca {settings.upstream_ca}: {exc}"
        ) from exc


def _upstreams(settings: Settings, own: Sequence[Endpoint]) -> Callable[[], Sequence[Upstream]]:
    if settings.upstreams is not None:
        fixed = without(settings.upstreams, own)
        for one in set(settings.upstreams) - set(fixed):
            log.warning("upstream %s is this resolver itself; it is left out", one)
        return lambda: fixed
    system = SystemUpstreams(own)
    return lambda: system.get(time.monotonic())

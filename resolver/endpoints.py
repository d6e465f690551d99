"""The sockets of clients: UDP and TCP, and one for metrics.

    UDP  receive ── credit ── hot table ── reply             the common case: nothing else happens
             └────────┴──────────┴ no ── service.handle ── send, now or later
    TCP  the same, framed by lengths (RFC 1035 section 4.2.2), pipelined

Laws:
- Nothing is decided here, and nothing waits.
- A client that is slow, silent or hostile costs others nothing: what it can hold is bounded.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import sys
from collections.abc import Callable, Hashable, Iterable
from ipaddress import ip_address
from typing import Any, Final, Protocol, cast

from resolver.answers import Table
from resolver.batch import MAX_REQUEST, Batch
from resolver.engine import Transport
from resolver.metrics import Sample, render
from resolver.policy import Policy

__all__ = ["MetricsConnection", "Send", "Service", "TcpConnection", "UdpEndpoint"]

_TURN: Final = 256
"""Packets served from one socket before the loop sees to the others; they take half a millisecond."""
_TCP_PIPELINE: Final = 128
"""Requests of one connection that may wait for answers; then it is not read from until some are given."""

Send = Callable[[bytes], None]


class Service(Protocol):
    """What the endpoints serve."""

    loop: asyncio.AbstractEventLoop
    policy: Policy
    tcp_idle: float
    """Seconds without a request after which a connection is closed."""

    def table(self, transport: Transport) -> Table:
        """Return the prepared answers."""

    def admits(self, packet: bytes, source: str, transport: Transport, send: Send) -> bool:
        """Whether to go on with a request of a source without credit at hand; if not, it is dealt with."""

    def handle(self, packet: bytes, source: str, transport: Transport, send: Send) -> bool:
        """See to a request that is not answered from the table.

        Returns:
            True: *send* is or will be called, once. False: there is nothing to say to this packet.
        """

    def sample(self, count: int) -> range:
        """Return which of *count* requests that came now are to be logged, by their numbers among them."""

    def log(self, packet: bytes, source: str) -> None:
        """Log one request."""

    def connected(self, connection: TcpConnection) -> bool:
        """Count *connection*; False when it is one too many."""

    def disconnected(self, connection: TcpConnection) -> None: ...

    def samples(self) -> Iterable[Sample]:
        """What there is to know about this resolver now."""


# --- UDP ---------------------------------------------------------------------------------------------------


class _Datagrams(Protocol):
    """Where the hot loop gets requests and leaves replies; a socket is one."""

    def recvfrom(self, size: int, /) -> tuple[bytes, Any]:
        """Return a request and whom to reply to, its address first; raise OSError when there is none."""

    def sendto(self, reply: bytes, client: Any, /) -> object:
        """Reply to whom ``recvfrom`` said."""


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
        local = []
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == self._IP_PKTINFO:
                # struct in_pktinfo: interface, local address, destination. Interface 0: as routes say.
                local.append((level, kind, bytes(4) + data[4:8] + bytes(4)))
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                local.append((level, kind, data))
        return packet, (client[0], client, local)

    def sendto(self, reply: bytes, client: Any, /) -> object:
        _, address, local = client
        return self._sock.sendmsg([reply], local, 0, address)


class UdpEndpoint:
    """One UDP socket and its hot loop.

    asyncio's own datagram transport costs ten times as much: a callback, a queue and a wake-up for each
    packet. Here a wake-up serves all that wait, and a known question costs two look-ups and a copy. Whatever
    is not common (no credit, not in the table, a run at its end) comes as an exception, which costs nothing
    while it does not.
    """

    def __init__(self, sock: socket.socket, service: Service) -> None:
        self.sock = sock
        wildcard = ip_address(sock.getsockname()[0]).is_unspecified and sys.platform == "linux"
        self._datagrams: _Datagrams = _WildcardDatagrams(sock) if wildcard else sock
        self._service = service
        self._table = service.table("udp")
        self._batch = Batch.on(sock, local=wildcard)

    def drain(self) -> None:
        """Answer what waits in the socket, and what comes meanwhile.

        A batch that was not full may be the last, and is looked after all the same: a client that asks again
        as soon as it has its answer is served without sleep, and waits half as long.
        """
        if self._batch is None:
            self._drain_singly()
            return
        served = 0
        while served < _TURN:
            count = self._batch.receive()
            if not count or self._serve(self._batch, count):
                return  # all are served, or the loop has something to do
            served += count

    def _serve(self, requests: Batch, count: int) -> bool:
        """Answer *count* requests; say whether any was not in the table."""
        for number in self._service.sample(count):
            self._service.log(requests.packet(number), requests.client(number)[0])
        memory, hot, credit = requests.memory, self._table.hot, self._service.policy.credits
        lengths: list[int] = []
        length_of_reply = lengths.append
        others: list[tuple[bytes, Any]] = []
        for start, length, source in requests.requests(count):
            key = memory[start : start - 2 + length]
            try:
                credit[source]()
            except (KeyError, StopIteration):
                number = len(lengths)
                if not self._admits(requests.packet(number), requests.client(number), source):
                    length_of_reply(0)
                    continue
            try:
                reply = hot[key]()
            except KeyError:
                number = len(lengths)
                others.append((requests.packet(number), requests.client(number)))
                length_of_reply(0)
                continue
            except StopIteration:
                reply = self._table.wind_up(key)
            size = len(reply)
            memory[start : start + size] = reply
            length_of_reply(2 + size)
        requests.reply(lengths)
        # What takes longer comes after what is ready.
        for packet, client in others:
            self._service.handle(packet, client[0], "udp", functools.partial(self._send, client))
        return bool(others)

    def _admits(self, packet: bytes, client: Any, source: Hashable) -> bool:
        """Whether to go on with a request of *client*, whose credit is not at hand under *source*."""
        credit = self._service.policy.credits
        try:
            credit[client[0]]()
        except (KeyError, StopIteration):
            send = functools.partial(self._send, client)
            if not self._service.admits(packet, client[0], "udp", send):
                return False
        # Until the next second also under the name that costs nothing to make.
        credit[source] = credit[client[0]]
        return True

    def _drain_singly(self) -> None:
        """As ``drain``, with two system calls for each packet."""
        recvfrom, sendto = self._datagrams.recvfrom, self._datagrams.sendto
        hot, credit = self._table.hot, self._service.policy.credits
        for _ in range(_TURN):
            try:
                packet, client = recvfrom(MAX_REQUEST)
            except OSError:  # BlockingIOError: all are served; others concern a packet that is gone
                return
            if self._service.sample(1):
                self._service.log(packet, client[0])
            try:
                credit[client[0]]()
            except (KeyError, StopIteration):
                send = functools.partial(self._send, client)
                if not self._service.admits(packet, client[0], "udp", send):
                    continue
            try:
                reply = hot[packet[2:]]()
            except KeyError:
                send = functools.partial(self._send, client)
                self._service.handle(packet, client[0], "udp", send)
                continue
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


# --- TCP ---------------------------------------------------------------------------------------------------


class TcpConnection(asyncio.Protocol):
    """One TCP connection: requests with their lengths in front, pipelined, answered as they are ready."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._table = service.table("tcp")
        self.source = ""
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._waiting = 0
        self._blocked = False
        self._active_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.source = transport.get_extra_info("peername")[0]
        if not self._service.connected(self):
            self._transport.abort()
            return
        self._active_at = self._service.loop.time()
        self._timer = self._service.loop.call_later(self._service.tcp_idle, self._check_idle)

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
        self._serve()

    def eof_received(self) -> bool:
        # A client may close its side after its last question and still wait for the answer.
        return self._waiting > 0

    def pause_writing(self) -> None:
        # A client that does not read its answers gets no more of them made.
        self._blocked = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._blocked = False
        self._go_on()

    @property
    def _full(self) -> bool:
        """Whether to stop taking requests until answers are gone."""
        return self._blocked or self._waiting >= _TCP_PIPELINE

    def _serve(self) -> None:
        """Take the whole requests that have been received, as long as there is room for their answers."""
        while self._transport is not None and not self._full and len(self._received) >= 2:
            length = int.from_bytes(self._received[:2])
            if len(self._received) < 2 + length:
                return
            packet = bytes(self._received[2 : 2 + length])
            del self._received[: 2 + length]
            # Only whole requests count: a byte now and then must not keep a connection.
            self._active_at = self._service.loop.time()
            self._request(packet)
        if self._full and self._transport is not None:
            self._transport.pause_reading()

    def _request(self, packet: bytes) -> None:
        if self._service.sample(1):
            self._service.log(packet, self.source)
        try:
            self._service.policy.credits[self.source]()
        except (KeyError, StopIteration):
            if not self._service.admits(packet, self.source, "tcp", self._write):
                return
        try:
            reply = self._table.hot[packet[2:]]()
        except KeyError:
            self._waiting += 1
            if not self._service.handle(packet, self.source, "tcp", self._answer):
                # No request at all: the framing is lost, or somebody tries what happens.
                self.abort()
            return
        except StopIteration:
            reply = self._table.wind_up(packet[2:])
        self._write(packet[:2] + reply)

    def _answer(self, reply: bytes) -> None:
        self._waiting -= 1
        self._write(reply)
        self._go_on()

    def _go_on(self) -> None:
        """Take further requests, if some had to wait."""
        if self._transport is None or self._full or self._transport.is_closing():
            return
        self._transport.resume_reading()
        if self._received:
            self._serve()

    def _write(self, reply: bytes) -> None:
        if self._transport is not None:
            # One write, so that length and message leave in one segment (RFC 7766 section 8).
            self._transport.write(len(reply).to_bytes(2) + reply)

    def _check_idle(self) -> None:
        loop, limit = self._service.loop, self._service.tcp_idle
        idle = loop.time() - self._active_at
        if idle >= limit and not self._waiting and self._transport is not None:
            # Not ``close``: that would wait for ever for a client that does not read its answers.
            self._transport.abort()
            return
        self._timer = loop.call_later(max(limit / 10, limit - idle), self._check_idle)


# --- metrics -----------------------------------------------------------------------------------------------


class MetricsConnection(asyncio.Protocol):
    """One HTTP connection of a Prometheus: a request, a reply, and the end."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = self._service.loop.call_later(self._service.tcp_idle, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._transport is None or (
            b"\r\n\r\n" not in self._received and len(self._received) < MAX_REQUEST
        ):
            return
        if self._received.startswith((b"GET /metrics ", b"GET /metrics?")):
            status, body = "200 OK", render(self._service.samples())
        else:
            status, body = "404 Not Found", "metrics are at /metrics\n"
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            f"Content-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n"
        )
        self._transport.write((head + body).encode())
        self._transport.close()

"""A real little upstream on loopback: UDP and TCP, answering what the test says."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from tests.tools import free_port

Handler = Callable[[dns.message.Message, str], "dns.message.Message | bytes | list[bytes] | None"]
"""(request, "udp" or "tcp") -> reply; bytes go out as they are, a list one by one; None: silence."""


def reply(request: dns.message.Message, *records: str, rcode: int = dns.rcode.NOERROR) -> dns.message.Message:
    """Answer *request* with records in zone-file form: ``www.example.test. 60 IN A 192.0.2.1``."""
    answer = dns.message.make_response(request, recursion_available=True)
    answer.set_rcode(rcode)
    for record in records:
        name, ttl, klass, kind, data = record.split(maxsplit=4)
        section = answer.authority if kind == "SOA" else answer.answer
        section.append(dns.rrset.from_text(name, int(ttl), klass, kind, data))
    return answer


class Upstream:
    """Serves in a thread; remembers what it was asked."""

    def __init__(
        self, handler: Handler, *, port: int | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """*tls*: what connections are secured with; None: plain TCP."""
        self.handler = handler
        self._tls = tls
        self.asked: list[tuple[str, str, dns.message.Message, tuple[str, int]]] = []
        """(question as text, transport, request, where it came from)"""
        self.port = port or free_port()
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def __enter__(self) -> Self:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sockets = [udp, tcp]
        for sock in self._sockets:
            sock.bind(self.address)
        tcp.listen()
        self._selector.register(udp, selectors.EVENT_READ, self._datagram)
        self._selector.register(tcp, selectors.EVENT_READ, self._connection)
        self._selector.register(self._stop[0], selectors.EVENT_READ, None)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop[1].send(b"x")
        self._thread.join()
        self._selector.close()
        for sock in [*self._sockets, *self._stop]:
            sock.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)

    def _datagram(self, sock: socket.socket) -> None:
        raw, client = sock.recvfrom(65535)
        for answer in self._answers(raw, "udp", client):
            sock.sendto(answer, client)

    def _connection(self, listener: socket.socket) -> None:
        accepted, client = listener.accept()
        accepted.settimeout(2.0)
        with (
            accepted if self._tls is None else self._tls.wrap_socket(accepted, server_side=True) as connection
        ):
            length = int.from_bytes(_exactly(connection, 2))
            for answer in self._answers(_exactly(connection, length), "tcp", client):
                connection.sendall(len(answer).to_bytes(2) + answer)

    def _answers(self, raw: bytes, transport: str, client: tuple[str, int]) -> list[bytes]:
        request = dns.message.from_wire(raw)
        question = request.question[0]
        self.asked.append((f"{question.name} {question.rdtype.name}", transport, request, client))
        answer = self.handler(request, transport)
        if answer is None:
            return []
        if isinstance(answer, dns.message.Message):
            return [answer.to_wire(max_size=65535)]
        return answer if isinstance(answer, list) else [answer]


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError("the client closed")
        data += piece
    return data

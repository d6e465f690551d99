"""Stands before an agent, and answers in its place while a fault lasts.

with FaultyProxy("127.0.0.1", agent.http_port) as proxy:
    with proxy.fault("hangs"):
        ...
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from types import TracebackType
from typing import BinaryIO, Final, Self

__all__ = ["FAULTS", "FaultyProxy"]

FAULTS: Final = ("403", "429", "500", "slow", "hangs", "resets")
_SLOW: Final = 0.7  # s for every request
_WORDS: Final = {
    "403": b"Permission denied",
    "429": b"Your IP is issuing too many concurrent connections, please rate limit your calls",
    "500": b"No cluster leader",
}


class FaultyProxy:
    """Forwards HTTP to one agent, each connection on one of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.struck = 0
        """Requests that a fault has met."""
        self._fault = ""
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def uri(self) -> str:
        return f"consul://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def fault(self, fault: str) -> Iterator[None]:
        """Inside this block every new request meets *fault*, one of ``FAULTS``."""
        assert fault in FAULTS
        self._over.clear()
        self._fault = fault
        self.struck = 0
        try:
            yield
        finally:
            self._fault = ""
            self._over.set()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        while self._threads:
            self._threads.pop().join(10)
        self._listener.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # that is how it is told to end
            while True:
                connection, _ = self._listener.accept()
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        upstream = http.client.HTTPConnection(*self._upstream)
        try:
            upstream.connect()
            with self._lock:
                self._sockets |= {connection, upstream.sock}
            with connection, connection.makefile("rb") as reader:
                while self._exchange(reader, connection, upstream):
                    pass
        except (OSError, http.client.HTTPException):
            pass  # one of the two left
        finally:
            with self._lock:
                self._sockets -= {connection, upstream.sock}
            upstream.close()
            connection.close()

    def _exchange(
        self, reader: BinaryIO, connection: socket.socket, upstream: http.client.HTTPConnection
    ) -> bool:
        first = reader.readline()
        if not first:
            return False
        method, target, _ = first.decode().split(" ", 2)
        headers = http.client.parse_headers(reader)
        body = reader.read(int(headers.get("Content-Length") or 0))
        if fault := self._fault:
            self.struck += 1
            if fault == "resets":
                return False
            if words := _WORDS.get(fault):
                self._answer(connection, int(fault), {}, words)
                return True
            self._over.wait(_SLOW if fault == "slow" else None)
        upstream.request(method, target, body or None, dict(headers.items()))
        reply = upstream.getresponse()
        kept = {name: value for name, value in reply.getheaders() if name.startswith("X-Consul")}
        self._answer(connection, reply.status, kept, reply.read())
        return True

    def _answer(self, connection: socket.socket, status: int, headers: dict[str, str], body: bytes) -> None:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)

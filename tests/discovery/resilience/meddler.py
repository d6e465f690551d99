"""A proxy in front of a real registry that can be told to misbehave.

Bytes pass unchanged until a fault is set; then every connection is broken, and each later request gets the
fault's answer. Thus the faults that a real server makes only by chance come when a test wants them.
"""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self

from tests.discovery.rawserver import answer

__all__ = ["LEADERLESS_AND_EMPTY", "NO_LEADER", "REFUSED", "SLOW_DOWN", "Meddler"]

REFUSED = answer(b"Permission denied", "403 Forbidden")
SLOW_DOWN = answer(b"Your IP is issuing too many concurrent connections", "429 Too Many Requests")
NO_LEADER = answer(b"No cluster leader", "500 Internal Server Error")
LEADERLESS_AND_EMPTY = answer(b"[]", headers="X-Consul-Index: 1\r\nX-Consul-KnownLeader: false\r\n")
"""A server that has just started and may answer in stale mode before it has loaded anything."""


class Meddler:
    """Listens on a port of its own and passes on to `upstream`; `fault` is the answer to give instead."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.fault: bytes | None = None
        self.answered = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def break_with(self, fault: bytes) -> None:
        """Break every connection and give this answer from now on."""
        self.fault = fault
        self._break()

    def mend(self) -> None:
        """Pass everything on again."""
        self.fault = None
        self._break()

    @property
    def open(self) -> int:
        """How many clients are connected."""
        with self._lock:
            return len(self._sockets) // 2

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._break()
        for thread in list(self._threads):
            thread.join(5)
        self._listener.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _break(self) -> None:
        with self._lock:
            for sock in self._sockets:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the other side was faster

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with self._kept(client):
            fault = self.fault
            if fault is not None:
                while client.recv(65536):
                    client.sendall(fault)
                    self.answered += 1
                return
            with self._kept(socket.create_connection(("127.0.0.1", self.upstream))) as registry:
                back = threading.Thread(target=_pass_on, args=(registry, client), daemon=True)
                back.start()
                _pass_on(client, registry)
                back.join()

    def _kept(self, sock: socket.socket) -> _Kept:
        return _Kept(self, sock)


class _Kept:
    """A socket that `_break` knows of while it is used; what a broken one raises ends here."""

    def __init__(self, meddler: Meddler, sock: socket.socket) -> None:
        self._meddler = meddler
        self._sock = sock

    def __enter__(self) -> socket.socket:
        with self._meddler._lock:
            self._meddler._sockets.add(self._sock)
        return self._sock

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        with self._meddler._lock:
            self._meddler._sockets.discard(self._sock)
        self._sock.close()
        return kind is not None and issubclass(kind, OSError)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while octets := source.recv(65536):
            target.sendall(octets)
    except OSError:
        pass
    for sock in (source, target):
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed by the other direction

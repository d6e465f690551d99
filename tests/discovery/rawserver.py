"""A server on loopback that does what a test tells it to, byte by byte: real sockets, real misbehaviour."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from discovery.config import ConsulConfig

__all__ = ["Peer", "RawServer", "answer", "blackhole"]


def answer(
    body: bytes | object,
    status: str = "200 OK",
    headers: str = "",
) -> bytes:
    """The bytes of one HTTP answer; what is not bytes becomes JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, server: RawServer) -> None:
        self.sock = sock
        self.server = server
        self._pending = b""

    def request(self) -> str | None:
        """Read one request and return it, headers and all; None when the client has gone."""
        while (end := self._pending.find(b"\r\n\r\n")) < 0:
            if not self._receive():
                return None
        head = self._pending[:end].decode("latin-1")
        length = next(
            (int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")), 0
        )
        while len(self._pending) < end + 4 + length:
            if not self._receive():
                return None
        whole = self._pending[: end + 4 + length].decode("latin-1")
        self._pending = self._pending[end + 4 + length :]
        self.server.requests.append(whole)
        return whole

    def send(self, raw: bytes) -> None:
        self.sock.sendall(raw)

    def trickle(self, raw: bytes, pace: float = 0.02) -> None:
        """Send one octet every *pace* seconds until the client or the test has had enough."""
        for n in range(len(raw)):
            if self.server.closing.wait(pace):
                return
            self.sock.sendall(raw[n : n + 1])

    def hang(self) -> None:
        """Say nothing until the test ends."""
        self.server.closing.wait()

    def reset(self) -> None:
        """Break the connection with a TCP reset instead of an orderly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def _receive(self) -> bool:
        more = self.sock.recv(65536)
        self._pending += more
        return bool(more)


class RawServer:
    """Calls `serve` with each accepted connection, in a thread of its own.

    `accepted` counts connections, `requests` holds what was asked over all of them.
    """

    def __init__(
        self,
        serve: Callable[[Peer], None],
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        unix: str | None = None,
    ) -> None:
        self.serve = serve
        self.tls = tls
        self.unix = unix
        self.accepted = 0
        self.requests: list[str] = []
        self.closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._peers: set[socket.socket] = set()
        self._lock = threading.Lock()
        if unix is not None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(unix)
        else:
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._listener.bind((host, 0))
        self._listener.listen()
        self.port: int = 0 if unix is not None else self._listener.getsockname()[1]

    @property
    def config(self) -> ConsulConfig:
        """How a client reaches this."""
        if self.unix is not None:
            return ConsulConfig(socket_path=self.unix, explicit=True)
        return ConsulConfig(port=self.port, tls=self.tls is not None, explicit=True)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            peers = list(self._peers)
        for sock in peers:
            try:
                # Not the one of SSLSocket: that takes the TLS away from the thread that uses it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # the client or `serve` closed it
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.tls is not None:
                sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            with self._lock:
                self._peers.add(sock)
            self._start(self._talk, sock)

    def _talk(self, sock: socket.socket) -> None:
        try:
            with sock:
                if isinstance(sock, ssl.SSLSocket):
                    sock.do_handshake()
                self.serve(Peer(sock, self))
        except OSError:
            pass  # the client went away: often the point of the test
        finally:
            with self._lock:
                self._peers.discard(sock)

    @property
    def open(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._peers)


@contextmanager
def blackhole() -> Iterator[int]:
    """A loopback port on which connecting hangs, as behind a firewall that drops: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = []
        try:
            while True:
                sock = socket.socket()
                waiting.append(sock)
                sock.settimeout(0.1)
                try:
                    sock.connect(address)
                except TimeoutError:
                    break
            yield address[1]
        finally:
            for sock in waiting:
                sock.close()

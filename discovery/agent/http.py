"""The agent's HTTP server: the only listening socket, and a thread for each connection.

    accept ─> limit ─> one thread per connection:  parse ─> serve ─> write, until the peer closes
                                                              │
                                   in a blocking read:   peer.wait ◄── ring: its topic changed

Laws:
- HTTP/1.1 with keep-alive; one response is one write, so that nothing waits for a delayed acknowledgement.
- Consul takes 200 connections from one address and answers the next with 429; so do we, with its words. A
  client that leaves a blocking read gives its place back.
- ``close`` returns when every thread and socket is gone, whatever they were waiting for.
"""

from __future__ import annotations

import json
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from discovery.agent.api import Request, Response
from discovery.errors import ConfigurationError

__all__ = ["Peer", "Serve", "Server"]

MAX_CONNECTIONS_PER_CLIENT: Final = 200
"""From one address (Consul: "http_max_conns_per_client"), so that what runs out at Consul runs out here."""
MAX_BODY: Final = 512 * 1024
"""Bytes of a request's body; a registration has a few hundred. More would be read into memory."""
_BACKLOG: Final = socket.SOMAXCONN
_JOIN_TIMEOUT: Final = 5.0  # s; threads end within milliseconds of the shutdown of their sockets
_TOO_MANY: Final = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 81\r\nConnection: close\r\n\r\n"
    b"Your IP is issuing too many concurrent connections, please rate limit your calls\n"
)

log: Final = logging.getLogger(__name__)


class Peer:
    """The other end of one connection, for a thread that waits for news to send it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._watch_connection = True

    def ring(self) -> None:
        """End the ``wait`` under way, or else the next; from any thread."""
        try:
            self._far.send(b"\0")
        except BlockingIOError:
            pass  # rung so often that the buffer is full: it is ringing

    def wait(self, timeout: float) -> bool:
        """Rest until somebody rings, or for *timeout* seconds. Return False when the peer has hung up."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._near, selectors.EVENT_READ)
            if self._watch_connection:
                selector.register(self._connection, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(timeout)}
        if self._near in ready:
            self._near.recv(4096)
        if self._connection in ready:
            # Nothing to read means that it hung up. Something is its next request, sent early: from here on
            # the connection is always readable, so watching it would turn this wait into a busy one.
            self._watch_connection = False
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        return True

    def close(self) -> None:
        self._near.close()
        self._far.close()


Serve = Callable[[Request, Callable[[], Peer]], Response | None]
"""Answers one request, in the thread of its connection; the second argument gives its peer, to wait with.
None says that the peer has gone."""


class Server:
    """Listens on one address and serves each connection in a thread.

    Args:
        address: host and port; port 0 takes a free one.

    Raises:
        ConfigurationError: nobody can listen there; names the address and the reason.
    """

    def __init__(self, address: tuple[str, int], serve: Serve) -> None:
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as exc:
            raise ConfigurationError(
                f"the embedded agent cannot listen on {host} port {port}: {exc.strerror or exc}; "
                "give another address, or port 0 for a free one"
            ) from exc
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._serve = serve
        self._lock = threading.Lock()
        self._closing = False
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        """Of the connections, and of some that have just ended: ``close`` waits for these too."""
        self._per_client: Counter[str] = Counter()
        self._acceptor = threading.Thread(target=self._accept, name="agent-accept", daemon=True)

    def start(self) -> None:
        self._acceptor.start()

    def close(self) -> None:
        """Stop listening, hang up on every client, and wait for their threads."""
        with self._lock:
            self._closing = True
            for connection in self._connections:
                _shut_down(connection)  # wakes its thread out of whatever it does with it
        _shut_down(self._listener)
        if self._acceptor.ident is not None:  # closed before it was started: another address was taken
            self._acceptor.join(_JOIN_TIMEOUT)
        self._listener.close()
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT)

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError as exc:
                if self._closing:
                    return
                # Out of descriptors, most likely. Those who are connected go on; a pause keeps this loop from
                # burning the processor they need.
                log.warning("cannot accept a connection: %s", exc)
                time.sleep(0.1)
                continue
            self._admit(connection, peer[0])

    def _admit(self, connection: socket.socket, client: str) -> None:
        thread = threading.Thread(
            target=self._converse, args=(connection, client), name="agent-connection", daemon=True
        )
        with self._lock:
            if self._closing:
                connection.close()
                return
            if self._per_client[client] >= MAX_CONNECTIONS_PER_CLIENT:
                with connection:
                    connection.setblocking(False)  # one who does not read must not hold up the others
                    try:
                        connection.send(_TOO_MANY)
                    except OSError:
                        pass  # gone already, which is as good
                return
            self._per_client[client] += 1
            self._connections.add(connection)
            self._threads = [other for other in self._threads if other.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _converse(self, connection: socket.socket, client: str) -> None:
        try:
            _Conversation(connection, client, self._serve)
        except OSError:
            pass  # the client hung up, or we did: there is nobody to tell
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)
                self._per_client[client] -= 1
                if not self._per_client[client]:
                    del self._per_client[client]


class _Conversation(BaseHTTPRequestHandler):
    """All requests of one connection, one after the other; creating it serves them (socketserver's way)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, connection: socket.socket, client: str, serve: Serve) -> None:
        self._serve_request = serve
        self._peer: Peer | None = None
        super().__init__(connection, (client, 0), None)  # type: ignore[arg-type]  # no socketserver here

    def finish(self) -> None:
        super().finish()
        if self._peer is not None:
            self._peer.close()

    def _get_peer(self) -> Peer:
        if self._peer is None:
            self._peer = Peer(self.connection)
        return self._peer

    def _serve(self) -> None:
        if self.request_version != "HTTP/1.1":
            self.close_connection = True
        length = self.headers.get("Content-Length") or "0"
        if "Transfer-Encoding" in self.headers:
            return self.send_error(411, "send the body with a Content-Length")
        if not (length.isascii() and length.isdigit()):
            return self.send_error(400, f"Content-Length {length!r} is not a number of bytes")
        if len(length) > 9 or int(length) > MAX_BODY:
            return self.send_error(413, f"the body has {length} bytes, at most {MAX_BODY} are read")
        body = self.rfile.read(int(length))
        request = Request.from_target(self.command, self.path, body)
        response = self._serve_request(request, self._get_peer) if len(body) == int(length) else None
        if response is None:
            self.close_connection = True
        else:
            self._send(response, pretty="pretty" in request.query)
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = _serve  # noqa: N815

    def _send(self, response: Response, *, pretty: bool = False) -> None:
        if response.is_text:
            kind, body = "text/plain; charset=utf-8", response.payload.encode(errors="replace")
        else:
            kind = "application/json"
            if pretty:
                body = json.dumps(response.payload, indent=4).encode() + b"\n"
            else:
                body = json.dumps(response.payload, separators=(",", ":")).encode()
        headers = {
            "Content-Type": kind,
            "X-Consul-Default-ACL-Policy": "allow",
            **response.headers,
            "Date": self.date_time_string(),
            "Content-Length": str(len(body)),
            **({"Connection": "close"} if self.close_connection else {}),
        }
        lines = [
            f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self.wfile.write(head if self.command == "HEAD" else head + body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no HTTP, and hang up: where the next request begins is anybody's guess."""
        self.close_connection = True
        self._send(Response(code, message or HTTPStatus(code).phrase, is_text=True))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        log.debug("%s %s", self.client_address[0], format % args)


def _shut_down(a_socket: socket.socket) -> None:
    try:
        a_socket.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not connected any more

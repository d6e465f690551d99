"""The fake engine behind a socket, for a registrar that is a process of its own.

    with ServedDocker() as docker:
        docker.run("web", publish=["80/tcp"])
        ... a process with DOCKER_HOST=docker.url ...

It speaks as much of Docker's API 1.41 as a registrar asks for: version, info, list, inspect and events.
"""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import socket
import ssl
import tempfile
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from tests.registrar.fake_docker import FakeDocker

__all__ = ["ServedDocker"]

_VERSION: Final = {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10.24", "Os": "linux"}
_KEPT: Final = 256
"""Events that are replayed at most; as dockerd."""


class ServedDocker(FakeDocker):
    """See the module. Every method may be called from any thread."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        """Only describe it; as a context manager it listens.

        Args:
            tls: listen on a port of 127.0.0.1 with it, instead of on a unix socket.
        """
        super().__init__(**options)
        self.asked: list[str] = []
        """The paths of all requests, without version and query, in order."""
        self.events_told = 0
        self._tls = tls
        self._directory = Path(tempfile.mkdtemp(prefix="portcall-docker-"))
        self._port = 0
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._connections: set[socket.socket] = set()
        self._past: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._subscribers: list[queue.SimpleQueue[bytes | None]] = []

    @property
    def url(self) -> str:
        """What DOCKER_HOST takes."""
        return f"tcp://localhost:{self._port}" if self._tls else f"unix://{self._directory}/docker.sock"

    # What goes wrong --------------------------------------------------------------------------------------

    def cut(self) -> None:
        super().cut()
        with self._lock:
            for subscriber in self._subscribers:
                subscriber.put(None)
            self._subscribers = []

    def go_away(self) -> None:
        """End: nobody listens any more, and what was connected is not."""
        super().go_away()
        self._past.clear()
        self._close()

    def come_back(self) -> None:
        super().come_back()
        self._listen()

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.go_away()
        shutil.rmtree(self._directory)

    # Inside -----------------------------------------------------------------------------------------------

    def _send(self, raw: dict[str, Any]) -> None:
        super()._send(raw)
        event = {**raw, "timeNano": self.now}
        self._past.append(event)
        self.events_told += 1
        for subscriber in self._subscribers:
            subscriber.put(_line(event))

    def _listen(self) -> None:
        if self._tls:
            # The same port again after ``go_away``: DOCKER_HOST names it.
            listener = socket.create_server(("127.0.0.1", self._port))
            self._port = listener.getsockname()[1]
        else:
            path = self._directory / "docker.sock"
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(path))
            listener.listen(64)
        self._listener = listener
        self._start(self._accept, listener)

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        while self._threads:
            self._threads.pop().join(10)
        listener.close()

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # that is how it is told to end
            while True:
                connection, _ = listener.accept()
                with self._lock:
                    self._connections.add(connection)
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls:
                plain, connection = connection, self._tls.wrap_socket(connection, server_side=True)
                with self._lock:  # the plain one has given its descriptor away
                    self._connections.discard(plain)
                    self._connections.add(connection)
            with connection, connection.makefile("rb") as reader:
                while request := reader.readline():
                    while reader.readline().strip():
                        pass  # no header matters, and no request has a body
                    _, target, _ = request.decode().split(" ", 2)
                    self._answer(connection, target)
        except OSError:
            pass  # the peer left, or the certificate was not to its liking
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket, target: str) -> None:
        parts = urlsplit(target)
        path = parts.path
        if path.startswith("/v1."):
            path = "/" + path[1:].partition("/")[2]
        self.asked.append(path)
        if path == "/events":
            query = parse_qs(parts.query)
            self._tell_events(connection, float(query.get("since", ["0"])[0] or 0))
            return
        status, body = self._look_up(path)
        text = json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall(head.encode() + text)

    def _look_up(self, path: str) -> tuple[str, Any]:
        with self._lock:
            if path == "/version":
                return "200 OK", _VERSION
            if path == "/info":
                info = self.info
                return "200 OK", {"ID": info.id, "Name": info.name, "ServerVersion": info.version}
            if path == "/containers/json":
                return "200 OK", [self._row(raw) for raw in self._containers.values()]
            _, _, name = path.removesuffix("/json").rpartition("/")
            raw = self._find(name)
            if raw is None:
                return "404 Not Found", {"message": f"No such container: {name}"}
            return "200 OK", raw

    def _tell_events(self, connection: socket.socket, since: float) -> None:
        subscriber: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with self._lock:
            for event in self._past:
                if event["timeNano"] >= since * 1e9:
                    subscriber.put(_line(event))
            self._subscribers.append(subscriber)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while (line := subscriber.get()) is not None:
                connection.sendall(b"%x\r\n%s\r\n" % (len(line), line))
        finally:
            with self._lock:
                if subscriber in self._subscribers:
                    self._subscribers.remove(subscriber)
        raise ConnectionAbortedError("the stream was cut")


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"

"""HTTP to one Consul agent: the only sockets of the client.

Laws:
- A ``Connection`` is used by one thread at a time; only ``interrupt`` may come from another. Threads
  never share a connection, so answers cannot be mixed up.
- Every call ends by its deadline, also when the peer sends one byte a second.
- A kept-alive connection that turns out dead is replaced once, silently: the agent may have closed it
  just as we wrote. Every request we send may be repeated without harm.
- urllib3's and socket's errors end here.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse

from discovery.backends.consul.codec import Request, error_of
from discovery.config import ConsulConfig
from discovery.errors import ConfigurationError, RegistryTimeout, RegistryUnavailable

__all__ = ["Connection", "HTTPReply", "Pool"]

CONNECT_TIMEOUT: Final = 2.0
"""Seconds to connect. An agent is on this host or in this rack: one that takes longer is not there."""
MAX_BODY: Final = 256 << 20
"""Octets of one reply. 10,000 instances take 14 MB; without a bound a broken peer takes all memory."""
_CHUNK: Final = 1 << 16
_KEEP: Final = 4
"""Idle connections kept for one-shot requests: more than this many at once are rare in one process."""


@dataclass(frozen=True, slots=True)
class HTTPReply:
    """A successful reply, with its JSON parsed (None for an empty body)."""

    headers: Mapping[str, str]
    raw: Any


class Connection:
    """One kept-alive HTTP connection; connects when it is first used."""

    def __init__(self, config: ConsulConfig) -> None:
        self._config = config
        self._http: HTTPConnection | None = None
        self._interrupted = False

    def call(self, request: Request, *, timeout: float) -> HTTPReply:
        """Send *request* and return the reply, within *timeout* seconds.

        Raises:
            RegistryTimeout: no complete answer in time.
            RegistryUnavailable: no connection, a broken one, HTTP 5xx, or a body that is not JSON.
            RegistryError: the agent refused (HTTP 4xx).
        """
        deadline = time.monotonic() + timeout
        asked = f"{request.method} {request.target.partition('?')[0]}"
        where = self._config.url
        headers = self._headers(request)
        reused = self._http is not None
        try:
            try:
                response = self._exchange(request, headers, deadline)
            except (HTTPError, OSError) as exc:
                self._drop()
                if not reused or self._interrupted or isinstance(exc, (TimeoutError, ReadTimeoutError)):
                    raise
                response = self._exchange(request, headers, deadline)
            body = self._read(response, deadline)
        except (TimeoutError, ReadTimeoutError, ConnectTimeoutError) as exc:
            self._drop()
            # urllib3 counts a refused connection as one kind of connect time-out; it is none.
            if isinstance(exc, NewConnectionError):
                raise RegistryUnavailable(self._cannot_ask(asked, exc)) from exc
            raise RegistryTimeout(f"{where} did not answer {asked} within {timeout:g} s") from exc
        except (HTTPError, OSError) as exc:
            self._drop()
            if self._interrupted:
                raise RegistryUnavailable(f"{asked} to {where} was interrupted") from exc
            raise RegistryUnavailable(self._cannot_ask(asked, exc)) from exc
        if error := error_of(
            response.status,
            body.decode(errors="replace"),
            asked=asked,
            where=where,
            token="X-Consul-Token" in headers,
        ):
            raise error
        try:
            raw = json.loads(body) if body else None
        except ValueError as exc:
            raise RegistryUnavailable(
                f"{where} answered {asked} with {len(body)} octets that are not JSON "
                f"(they begin {body[:40]!r}); is that a Consul agent?"
            ) from exc
        return HTTPReply(response.headers, raw)

    def interrupt(self) -> None:
        """Make a call under way in another thread fail now, and every later one."""
        # First the flag, then the socket: _exchange connects first and looks at the flag after, so that
        # whichever comes second sees the other.
        self._interrupted = True
        http = self._http
        sock = http.sock if http is not None else None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed already, which is what we want

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        self._drop()

    def _exchange(self, request: Request, headers: dict[str, str], deadline: float) -> BaseHTTPResponse:
        if self._http is None:
            self._http = _new_http(self._config)
            self._http.timeout = min(CONNECT_TIMEOUT, _remaining(deadline))
            self._http.connect()
        http = self._http
        if self._interrupted:
            raise ConnectionAbortedError("interrupted")
        http.timeout = _remaining(deadline)
        if http.sock is not None:
            http.sock.settimeout(http.timeout)
        http.request(
            request.method, request.target, body=request.body, headers=headers, preload_content=False
        )
        return http.getresponse()

    def _read(self, response: BaseHTTPResponse, deadline: float) -> bytes:
        chunks = []
        size = 0
        while chunk := response.read(_CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_BODY:
                raise ConnectionAbortedError(f"the answer is larger than {MAX_BODY} octets")
            left = _remaining(deadline)
            if self._http is not None and self._http.sock is not None:
                self._http.sock.settimeout(left)
        return b"".join(chunks)

    def _cannot_ask(self, asked: str, exc: Exception) -> str:
        return f"cannot ask Consul at {self._config.url} for {asked}: {_reason(exc)}"

    def _headers(self, request: Request) -> dict[str, str]:
        config = self._config
        headers = {"Accept": "application/json", "User-Agent": "portcall"}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if token := _token(config):
            headers["X-Consul-Token"] = token
        if config.auth:
            headers["Authorization"] = "Basic " + base64.b64encode(config.auth.encode()).decode()
        if config.namespace:
            headers["X-Consul-Namespace"] = config.namespace
        if config.partition:
            headers["X-Consul-Partition"] = config.partition
        return headers

    def _drop(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            http.close()


class Pool:
    """Connections for one-shot calls from any thread. The last one used is used first."""

    def __init__(self, config: ConsulConfig) -> None:
        self._config = config
        self._idle: deque[Connection] = deque(maxlen=_KEEP)
        self._lock = threading.Lock()
        # A child must not speak on its parent's connections: both would read each other's answers.
        os.register_at_fork(after_in_child=_weak_method(self, "_after_fork"))

    def call(self, request: Request, *, timeout: float) -> HTTPReply:
        """As ``Connection.call``."""
        with self._lock:
            connection = self._idle.pop() if self._idle else Connection(self._config)
        try:
            return connection.call(request, timeout=timeout)
        finally:
            with self._lock:
                surplus = self._idle.popleft() if len(self._idle) == _KEEP else None
                self._idle.append(connection)
            if surplus is not None:
                surplus.close()

    def close(self) -> None:
        """Close the idle connections; the pool stays usable."""
        with self._lock:
            idle = list(self._idle)
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def _weak_method(owner: object, name: str) -> Any:
    """Return a callable for hooks that can never be unregistered, which keeps *owner* from no end."""
    import weakref

    reference = weakref.ref(owner)

    def call() -> None:
        target = reference()
        if target is not None:
            getattr(target, name)()

    return call


class _UnixHTTPConnection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout if isinstance(self.timeout, float) else CONNECT_TIMEOUT)
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


def _new_http(config: ConsulConfig) -> HTTPConnection:
    if config.socket_path:
        return _UnixHTTPConnection(config.socket_path)
    if config.tls:
        context = _tls_context(config)
        return HTTPSConnection(
            config.host,
            config.port,
            ssl_context=context,
            cert_reqs=context.verify_mode,
            server_hostname=config.tls_server_name,
        )
    return HTTPConnection(config.host, config.port)


def _tls_context(config: ConsulConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.cacert, capath=config.capath)
        if config.client_cert:
            context.load_cert_chain(config.client_cert, config.client_key)
    except OSError as exc:
        raise ConfigurationError(
            f"cannot load the TLS files for {config.url} (CONSUL_CACERT={config.cacert!r}, "
            f"CONSUL_CAPATH={config.capath!r}, CONSUL_CLIENT_CERT={config.client_cert!r}, "
            f"CONSUL_CLIENT_KEY={config.client_key!r}): {exc}"
        ) from exc
    if not config.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _token(config: ConsulConfig) -> str | None:
    if not config.token_file:
        return config.token
    try:
        return Path(config.token_file).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise ConfigurationError(
            f"cannot read the token file {config.token_file!r} from CONSUL_HTTP_TOKEN_FILE: {exc.strerror}"
        ) from exc


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _reason(exc: BaseException) -> str:
    """Return the operating system's own words, from under the libraries' wrapping."""
    if isinstance(exc, NewConnectionError) and exc.__cause__ is not None:
        exc = exc.__cause__
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return str(exc) or type(exc).__name__

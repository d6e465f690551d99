"""HTTP to one Consul agent: the only sockets of the client.

Laws:
- A ``Connection`` is used by one thread at a time; only ``interrupt`` may come from another. Threads
  never share a connection, so answers cannot be mixed up.
- Every call ends by its deadline, also when the peer sends one byte a second. (Resolving a host name is
  the exception: the C library's time limits hold there.)
- A kept-alive connection that turns out dead is replaced once, silently: the agent may have closed it
  just as we wrote. Every request we send may be repeated without harm.
- A forked child gives up its copies of its parent's sockets at once: on a shared one both would read each
  other's answers, and a copy that is kept keeps the agent's side open after the parent has closed its own.
- urllib3's, http.client's and socket's errors end here.
"""

from __future__ import annotations

import base64
import json
import math
import os
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, cast

from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse

from discovery.backends.consul.codec import Request, error_of
from discovery.config import ConsulConfig
from discovery.errors import ConfigurationError, RegistryTimeout, RegistryUnavailable

__all__ = ["Connection", "HTTPReply", "Pool"]

CONNECT_TIMEOUT: Final = 2.0
"""Seconds to connect to one address. An agent is on this host or in this rack: one that takes longer is
not there."""
MAX_BODY: Final = 256 << 20
"""Octets of one reply. 10,000 instances take 14 MB; without a bound a broken peer takes all memory."""
_CHUNK: Final = 1 << 16
_KEEP: Final = 4
"""Idle connections kept for one-shot requests: more than this many at once are rare in one process."""
_BROKEN: Final = (HTTPError, HTTPException, OSError)
"""What the libraries raise when a conversation fails."""


@dataclass(frozen=True, slots=True)
class HTTPReply:
    """A successful reply, with its JSON parsed (None for an empty body)."""

    headers: Mapping[str, str]
    raw: Any


class Connection:
    """One kept-alive HTTP connection; connects when it is first used."""

    def __init__(self, config: ConsulConfig) -> None:
        self._config = config
        self.opened: int = 0
        """How many connections were made; one more after each that broke."""
        self._http: _HTTP | None = None
        self._socket: _Socket | _TLSSocket | None = None  # also while it connects
        self._interrupted = False
        _connections.add(self)

    def call(
        self, request: Request, *, timeout: float, anew: tuple[Request, float] | None = None
    ) -> HTTPReply:
        """Send *request* and return the reply, within *timeout* seconds.

        Args:
            anew: sent instead where a kept connection has to be replaced, and with it perhaps the agent; and
                its own timeout.

        Raises:
            ConfigurationError: the token or a TLS file cannot be used.
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
            except _BROKEN as exc:
                self._drop()
                if not reused or self._interrupted or isinstance(exc, TimeoutError):
                    raise
                again, timeout = anew or (request, timeout)
                deadline = min(deadline, time.monotonic() + timeout)
                response = self._exchange(again, headers, deadline)
            body = self._read(response)
        except _BROKEN as exc:
            self._drop()
            if self._interrupted:
                raise RegistryUnavailable(f"{asked} to {where} was interrupted") from exc
            if isinstance(exc, (TimeoutError, ReadTimeoutError)):
                said = (
                    str(exc)
                    if isinstance(exc, _ConnectTimeout)
                    else f"did not answer {asked} within {timeout:g} s"
                )
                raise RegistryTimeout(f"{where} {said}") from exc
            raise RegistryUnavailable(f"cannot ask Consul at {where} for {asked}: {_reason(exc)}") from exc
        if error := error_of(
            response.status,
            body.decode(errors="replace"),
            asked=asked,
            where=where,
            token="X-Consul-Token" in headers,
        ):
            raise error
        if not body and request.method != "GET":
            return HTTPReply(response.headers, None)
        try:
            raw = json.loads(body)
        except ValueError as exc:
            raise RegistryUnavailable(
                f"{where} answered {asked} with {len(body)} octets that are not JSON "
                f"(they begin {body[:40]!r}); is that a Consul agent?"
            ) from exc
        return HTTPReply(response.headers, raw)

    def interrupt(self) -> None:
        """Make a call under way in another thread fail now, and every later one."""
        # First the flag, then the socket: _open shows the socket first and looks at the flag after, so that
        # whichever comes second sees the other.
        self._interrupted = True
        sock = self._socket
        if sock is not None:
            try:
                # Not the method of SSLSocket, which takes the TLS away from under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed or not connected yet, and the flag does the rest

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        self._drop()

    def _exchange(self, request: Request, headers: dict[str, str], deadline: float) -> BaseHTTPResponse:
        # http.client drops its socket when the last answer said "Connection: close".
        http = self._http
        if http is None or http.sock is None:
            self._drop()
            http = self._http = self._open(deadline)
        http.timed.deadline = deadline
        http.timeout = _remaining(deadline)  # for sending; urllib3 hands it to the socket
        http.request(
            request.method, request.target, body=request.body, headers=headers, preload_content=False
        )
        return http.getresponse()

    def _read(self, response: BaseHTTPResponse) -> bytes:
        chunks = []
        size = 0
        while chunk := response.read(_CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_BODY:
                raise ConnectionAbortedError(f"the answer is larger than {MAX_BODY} octets")
        return b"".join(chunks)

    def _open(self, deadline: float) -> _HTTP:
        config = self._config
        self.opened += 1
        if config.socket_path:
            return _HTTP("localhost", 80, self._connect(socket.AF_UNIX, config.socket_path, deadline))
        sock = self._connect_tcp(deadline)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _HTTP(config.host, config.port, self._encrypt(sock, deadline) if config.tls else sock)

    def _connect_tcp(self, deadline: float) -> _Socket:
        config = self._config
        failed: OSError | None = None
        # Octets go to the resolver as they are. For a str Python loads its IDNA codec first, with tables of
        # all of Unicode: a sixth of a first lookup.
        host = config.host.encode() if config.host.isascii() else config.host
        for family, *_, address in socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM):
            try:
                return self._connect(family, address, deadline)
            except OSError as exc:
                if self._interrupted:
                    raise
                failed = exc
        raise failed or OSError("the host name has no address")

    def _connect(self, family: int, address: Any, deadline: float) -> _Socket:
        self._drop()
        sock = self._socket = _Socket(family, socket.SOCK_STREAM)
        self._refuse_if_interrupted()
        patience = min(CONNECT_TIMEOUT, _remaining(deadline))
        sock.settimeout(patience)
        try:
            sock.connect(address)
        except TimeoutError as exc:
            raise _ConnectTimeout(f"did not accept a connection within {patience:.2g} s") from exc
        self._refuse_if_interrupted()
        return sock

    def _encrypt(self, plain: _Socket, deadline: float) -> _TLSSocket:
        context = _tls_context(self._config)
        plain.settimeout(_remaining(deadline))
        sock = context.wrap_socket(
            plain,
            server_hostname=self._config.tls_server_name or self._config.host,
            do_handshake_on_connect=False,  # interrupt must be able to reach it meanwhile
        )
        self._socket = sock = cast(_TLSSocket, sock)  # the context's sslsocket_class
        self._refuse_if_interrupted()
        sock.do_handshake()
        return sock

    def _refuse_if_interrupted(self) -> None:
        if self._interrupted:
            raise ConnectionAbortedError("interrupted")

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
        for name, value in headers.items():
            # RFC 9110 section 5.5. A line break left in a token would end the header and begin another.
            if not (value.isascii() and value.isprintable()):
                raise ConfigurationError(
                    f"what was configured for the header {name} has {len(value)} characters, and not all are "
                    "printable ASCII; look for a line break or an invisible character in it"
                )
        return headers

    def _drop(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            http.close()
        self._abandon()

    def _abandon(self) -> None:
        """Close the file descriptor, and touch nothing else.

        A buffered reader that still refers to it keeps a socket open; and in a forked child the locks
        of such a reader may be held by a thread that does not exist there.
        """
        sock, self._socket = self._socket, None
        if sock is not None and (descriptor := sock.detach()) >= 0:
            os.close(descriptor)

    def _after_fork(self) -> None:
        self._http = None
        self._abandon()


class Pool:
    """Connections for one-shot calls from any thread. The last one used is used first."""

    def __init__(self, config: ConsulConfig) -> None:
        self._config = config
        self._idle: deque[Connection] = deque()
        self._lock = threading.Lock()
        _pools.add(self)

    def call(self, request: Request, *, timeout: float) -> HTTPReply:
        """As ``Connection.call``."""
        with self._lock:
            connection = self._idle.pop() if self._idle else Connection(self._config)
        try:
            return connection.call(request, timeout=timeout)
        finally:
            with self._lock:
                self._idle.append(connection)
                surplus = self._idle.popleft() if len(self._idle) > _KEEP else None
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
        self._idle.clear()


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for connection in list(_connections):
        connection._after_fork()
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Socket(socket.socket):
    """A socket whose every receive ends by ``deadline``, in seconds on the monotonic clock.

    A socket's own time-out begins anew with each octet that arrives.
    """

    deadline = math.inf

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_remaining(self.deadline))
        return super().recv_into(*args, **kwargs)


class _TLSSocket(ssl.SSLSocket):
    """The same over TLS."""

    deadline = math.inf

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_remaining(self.deadline))
        return super().recv_into(*args, **kwargs)


class _HTTP(HTTPConnection):
    """HTTP over a socket that is connected already."""

    def __init__(self, host: str, port: int, sock: _Socket | _TLSSocket) -> None:
        super().__init__(host, port)
        self.sock = self.timed = sock


class _ConnectTimeout(TimeoutError):
    """Nobody accepted the connection in time; the message says so."""


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
    context.sslsocket_class = _TLSSocket
    return context


def _token(config: ConsulConfig) -> str | None:
    if not config.token_file:
        return config.token
    try:
        return Path(config.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigurationError(
            f"cannot read the token file {config.token_file!r} from CONSUL_HTTP_TOKEN_FILE: {_reason(exc)}"
        ) from exc


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is over")
    return left


def _reason(exc: BaseException) -> str:
    """Return the operating system's own words where there are some."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        advice = "see CONSUL_CACERT and CONSUL_TLS_SERVER_NAME"
        return f"its certificate is not accepted ({exc.verify_message}); {advice}"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return str(exc) or type(exc).__name__

"""Runs HTTP and TCP checks for real: each in a thread, at its interval, with a deadline.

Laws:
- ``follow`` may be called with any set of checks at any time: what is new starts, what is gone or different
  ends, what is the same is left alone.
- The first run of a check comes at a random moment within its interval, as in Consul: a hundred checks that
  are registered together do not go on running together.
- A run ends at its deadline, whatever the other side does: a server that sends a byte now and then must not
  look alive. ``close`` ends it sooner.
- Outputs are Consul's, so that what people look for in them is there.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self
from urllib.parse import urljoin, urlsplit

from discovery.model import Check, CheckID, Status

__all__ = ["Runner", "run_check"]

MIN_INTERVAL: Final = 1.0
"""Seconds; a shorter one is taken for this (Consul: "MinInterval")."""
DEFAULT_TIMEOUT: Final = 10.0
"""Seconds, or the interval where that is shorter: a run ends before the next begins (as in Consul)."""
MAX_OUTPUT: Final = 4096
"""Bytes of a response's body that are kept, from its end (Consul: "check_output_max_size")."""
MAX_REDIRECTS: Final = 10  # as Go's client
_JOIN_TIMEOUT: Final = 1.0
"""Seconds that ``close`` gives a thread: only the resolution of a host name cannot be cut short."""

Report = Callable[[Check, Status, str], None]
"""Takes the result of a run, in the thread that ran it."""


class Runner:
    """Runs a changing set of checks.

    Args:
        random: uniform in [0, 1).
    """

    def __init__(self, report: Report, *, random: Callable[[], float]) -> None:
        self._report = report
        self._random = random
        self._running: dict[CheckID, _Run] = {}
        self._ending: list[_Run] = []

    def follow(self, checks: Mapping[CheckID, Check]) -> None:
        """Run exactly *checks* from now on. Does not wait for what ends; calls must not overlap."""
        for check_id, run in list(self._running.items()):
            if checks.get(check_id) is not run.check:
                run.stop()
                self._ending.append(self._running.pop(check_id))
        self._ending = [run for run in self._ending if run.is_alive()]
        for check_id in checks.keys() - self._running.keys():
            run = self._running[check_id] = _Run(checks[check_id], self._report, self._random)
            run.start()

    def close(self) -> None:
        """End every run, and wait for the threads."""
        self.follow({})
        for run in self._ending:
            run.join(_JOIN_TIMEOUT)


class _Run(threading.Thread):
    """One check, run again and again."""

    def __init__(self, check: Check, report: Report, random: Callable[[], float]) -> None:
        super().__init__(name=f"agent-check-{check.id}", daemon=True)
        self.check = check
        self._report = report
        self._interval = max(check.interval or 0.0, MIN_INTERVAL)
        self._first_pause = random() * self._interval
        self._stopped = threading.Event()
        self._line: _Line | None = None

    def run(self) -> None:
        pause = self._first_pause
        while not self._stopped.wait(pause):
            pause = self._interval
            with _Line(self.check.timeout or min(self._interval, DEFAULT_TIMEOUT)) as self._line:
                if self._stopped.is_set():
                    return  # between the wait and here: ``stop`` could not see this line yet
                status, output = run_check(self.check, self._line)
            if not self._stopped.is_set():
                self._report(self.check, status, output)

    def stop(self) -> None:
        self._stopped.set()
        if (line := self._line) is not None:
            line.cut()


class _Line:
    """The one connection that a run has open, which another thread can cut; cut by itself at its deadline.

    Args:
        timeout: seconds from now to the deadline.
    """

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_cut = False
        self._timer = threading.Timer(timeout, self.cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._timer.join()
        self._hold(None)

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self._deadline

    def cut(self) -> None:
        """Make whoever uses the connection fail now, and every later ``connect``."""
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                try:
                    # Of the plain class, also for TLS: SSLSocket.shutdown takes the TLS state away from under
                    # the thread that reads.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected yet, or no more

    def connect(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> socket.socket:
        """Connect to the first address of *host* that answers; an earlier connection is closed.

        Raises:
            OSError: nothing answers there, in the words of Go's dialer; or what TLS found wrong.
        """
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise OSError(f"dial tcp: lookup {host}: no such host") from exc
        for number, (family, kind, protocol, _, address) in enumerate(addresses, 1):
            dialled = socket.socket(family, kind, protocol)
            self._hold(dialled)
            try:
                dialled.settimeout(max(self._deadline - time.monotonic(), 0.001))
                dialled.connect(address)
            except OSError as exc:
                if number < len(addresses) and not self._is_cut:
                    continue
                why = "i/o timeout" if isinstance(exc, TimeoutError) else _connect_error(exc)
                raise OSError(f"dial tcp {where}: {why}") from exc
            if self._is_cut:  # a connect that was cut may look like one that succeeded
                raise OSError(f"dial tcp {where}: operation was canceled")
            break
        if tls is None:
            return dialled
        wrapped = tls.wrap_socket(dialled, server_hostname=host, do_handshake_on_connect=False)
        self._hold(wrapped)  # before the handshake, which may hang as well as anything
        wrapped.do_handshake()
        return wrapped

    def _hold(self, new: socket.socket | None) -> None:
        with self._lock:
            old, self._socket = self._socket, new
            if old is not None and old is not new:
                old.close()


def _connect_error(exc: OSError) -> str:
    return f"connect: {os.strerror(exc.errno).lower()}" if exc.errno else str(exc)


def run_check(check: Check, line: _Line) -> tuple[Status, str]:
    """Run *check* once, over *line*: its status and output. Never raises for what the other side does."""
    return _run_http(check, check.http, line) if check.http else _run_tcp(check.tcp or "", line)


def _run_tcp(address: str, line: _Line) -> tuple[Status, str]:
    try:
        host, port = _host_and_port(address)
        line.connect(host, port)
    except OSError as exc:
        return "critical", str(exc)
    return "passing", f"TCP connect {address}: Success"


def _host_and_port(address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[ipv6]:port``."""
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError as exc:
        raise OSError(f"dial tcp: address {address}: {exc}") from exc
    raise OSError(f"dial tcp: address {address}: missing port in address")


def _run_http(check: Check, url: str, line: _Line) -> tuple[Status, str]:
    method = (check.method or "GET").upper()
    try:
        code, reason, body = _fetch(method, url, check, line)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        why = (
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            if line.expired
            else str(exc) or type(exc).__name__
        )
        return "critical", f'{method.capitalize()} "{url}": {why}'
    status: Status = "passing" if 200 <= code < 300 else "warning" if code == 429 else "critical"
    return status, f"HTTP {method} {url}: {code} {reason} Output: {body}"


def _fetch(method: str, url: str, check: Check, line: _Line) -> tuple[int, str, str]:
    """Ask for *url* and where it redirects to; return code, reason and the end of the body.

    Raises:
        OSError, HTTPException, ValueError: there is no response.
    """
    body = (check.body or "").encode()
    headers = [(name, value) for name, values in check.header.items() for value in values]
    first_host = urlsplit(url).netloc
    for _ in range(MAX_REDIRECTS + 1):
        with _open(method, url, headers, body, check, line) as response:
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return response.status, response.reason, _tail(response)
        url = urljoin(url, location)
        if response.status in (301, 302, 303) and method not in ("GET", "HEAD"):
            method, body = "GET", b""  # RFC 9110 section 15.4, as every client reads it
        if urlsplit(url).netloc != first_host:
            # Credentials are for whom they were given; the redirect may lead anywhere.
            headers = [pair for pair in headers if pair[0].lower() not in ("authorization", "cookie", "host")]
    raise OSError(f"stopped after {MAX_REDIRECTS} redirects")


def _open(
    method: str, url: str, headers: list[tuple[str, str]], body: bytes, check: Check, line: _Line
) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f'unsupported protocol scheme "{parts.scheme}"')
    if not parts.hostname:
        raise ValueError("no Host in request URL")
    tls = _tls_context(verify=not check.tls_skip_verify) if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    connection = http.client.HTTPConnection(parts.hostname, port)
    connection.sock = line.connect(parts.hostname, port, tls)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    given = {name.lower() for name, _ in headers}
    defaults = [
        ("Host", parts.netloc.rpartition("@")[2]),
        ("User-Agent", "Consul Health Check"),
        ("Accept", "text/plain, text/*, */*"),
    ]
    if body or method in ("PUT", "POST", "PATCH"):
        defaults.append(("Content-Length", str(len(body))))
    for name, value in [*(pair for pair in defaults if pair[0].lower() not in given), *headers]:
        connection.putheader(name, value)
    connection.putheader("Connection", "close")
    connection.endheaders(body)
    response = connection.getresponse()
    if line.expired:  # http.client takes headers that were cut off in their midst for all there are
        response.close()
        raise OSError("timed out")
    return response


def _tls_context(*, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _tail(response: http.client.HTTPResponse) -> str:
    tail = b""
    try:
        while chunk := response.read(65536):
            tail = (tail + chunk)[-MAX_OUTPUT:]
    except (OSError, http.client.HTTPException):
        pass  # the status has decided; Consul too takes what came of the body
    return tail.decode(errors="replace")

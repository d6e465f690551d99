"""A resolver's life: bind, give up rights, serve, stop.

    run    in the main thread, until SIGTERM or SIGINT; with workers, in several processes
    start  in a thread of its own, for whoever embeds it

Laws:
- Ports are bound first and by whoever may; what serves needs no rights.
- A port that cannot be had is a sentence that names it and says what to do.
- What was begun ends with ``close``: sockets, threads, processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import itertools
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from discovery.backends import Catalogue
from discovery.config import Config
from discovery.errors import ConfigurationError, DiscoveryError
from resolver import host
from resolver.config import Endpoint, Settings
from resolver.endpoints import MetricsConnection, TcpConnection, UdpEndpoint
from resolver.policy import Policy
from resolver.service import Service

__all__ = ["Resolver"]

log = logging.getLogger("resolver")

_RECEIVE_BUFFER: Final = 4 << 20
"""Octets asked of the kernel for requests that wait. The default of 208 KiB overflows in the milliseconds in
which another thread may hold the interpreter."""
_START_TIMEOUT: Final = 10.0  # s for the thread to come up
_PR_SET_PDEATHSIG: Final = 1  # of Linux's prctl

_Sockets = list[tuple[socket.socket, socket.socket]]
"""UDP and TCP of each endpoint."""


class Resolver:
    """A DNS server on the addresses of *settings*, answering from *backend*.

    with Resolver(settings, backend) as resolver:     # in a thread of its own
        resolver.addresses                            # what it listens on; port 0 became a real one

    Resolver(settings, backend).run()                 # in this thread, until SIGTERM or SIGINT
    """

    def __init__(self, settings: Settings, backend: Catalogue, *, config: Config | None = None) -> None:
        """Only remember the arguments.

        Args:
            backend: where names come from; the caller closes it.
            config: of the discovery client (watches, waits); None: its defaults.
        """
        self._settings = settings
        self._backend = backend
        self._config = config or Config()
        self._sockets: _Sockets = []
        self._metrics: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._workers: set[int] = set()
        self._failure: DiscoveryError | None = None
        self.addresses: tuple[Endpoint, ...] = ()
        self.metrics: Endpoint | None = None
        """Where metrics are served, if they are."""

    def start(self) -> Self:
        """Bind, and serve in a thread; return once questions are answered.

        Raises:
            ConfigurationError: an address cannot be bound, or a file not be read; the message says which
                and what to do.
        """
        self._open()
        serving = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(serving.set)), name="resolver", daemon=True
        )
        self._thread.start()
        serving.wait(_START_TIMEOUT)
        return self

    def run(self, ready: Callable[[], None] = lambda: None, *, user: str | None = "root") -> None:
        """Bind, and serve in this thread (the main one) until SIGTERM, SIGINT or ``close``.

        Args:
            ready: called once questions are answered.
            user: whom to become when ports are bound, as ``host.become`` takes it.

        Raises:
            ConfigurationError: as ``start``, and when we cannot become *user*.
            DiscoveryError: a worker process ended by itself.
        """
        self._open()
        try:
            host.become(user)
            is_parent = self._fork()
        except BaseException:
            self._close_sockets()
            raise

        def serving() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._ask_to_stop)
            if self._workers:
                loop.add_signal_handler(signal.SIGCHLD, self._worker_ended)
            if is_parent:
                ready()

        try:
            asyncio.run(self._serve(serving))
        finally:
            self._end_workers()
        if not is_parent:
            # The rest of the program is the parent's.
            os._exit(0)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop serving and close every socket; idempotent. Callable from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._ask_to_stop)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._close_sockets()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask_to_stop(self) -> None:
        if self._stop is not None:
            self._stop.set()

    # Sockets -----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        settings = self._settings
        self._tls = _tls_context(settings)
        shared = settings.workers > 1
        try:
            for endpoint in settings.listen:
                self._sockets.append(_bind(endpoint, shared=shared))
            if settings.metrics is not None:
                self._metrics = _bind_tcp(settings.metrics)
                self.metrics = Endpoint(*self._metrics.getsockname()[:2])
        except ConfigurationError:
            self._close_sockets()
            raise
        self.addresses = tuple(Endpoint(*udp.getsockname()[:2]) for udp, _ in self._sockets)

    def _close_sockets(self) -> None:
        for sock in itertools.chain(*self._sockets, filter(None, [self._metrics])):
            sock.close()
        self._sockets.clear()
        self._metrics = None

    # Serving -----------------------------------------------------------------------------------------------

    async def _serve(self, serving: Callable[[], None]) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        service = Service(
            self._settings, self._backend, self._config, self.addresses, self._policy(), self._tls, loop
        )
        servers: list[asyncio.Server] = []
        try:
            service.start()
            for udp, tcp in self._sockets:
                loop.add_reader(udp, UdpEndpoint(udp, service).drain)
                servers.append(await loop.create_server(lambda: TcpConnection(service), sock=tcp))
            if self._metrics is not None:
                metrics = await loop.create_server(lambda: MetricsConnection(service), sock=self._metrics)
                servers.append(metrics)
            serving()
            await self._stop.wait()
        finally:
            for udp, _ in self._sockets:
                loop.remove_reader(udp)
            for server in servers:
                server.close()
            await service.close()
            self._close_sockets()

    def _policy(self) -> Policy:
        allowed, rate = self._settings.allow, self._settings.rate
        if allowed is not None:
            return Policy(allowed, rate=rate)
        networks = host.networks_of(endpoint.host for endpoint in self.addresses)
        return Policy(networks, rate=rate, also=host.Inhabitants(time.monotonic).has)

    # Workers -----------------------------------------------------------------------------------------------

    def _fork(self) -> bool:
        """Make the other worker processes, each with sockets of its own on the same addresses.

        The kernel spreads clients over them (SO_REUSEPORT). Each follows the catalogue by itself, with its
        share of the watches, and serves its metrics on the next port.

        Returns:
            Whether this process is the one that was started.
        """
        count = self._settings.workers
        if count == 1:
            return True
        self._config = replace(self._config, max_watches=max(1, self._config.max_watches // count))
        others = [[_bind(endpoint, shared=True) for endpoint in self.addresses] for _ in range(1, count)]
        for number, mine in enumerate(others, start=1):
            pid = os.fork()
            if pid == 0:
                self._close_sockets()
                if self.metrics is not None:
                    self.metrics = replace(self.metrics, port=self.metrics.port + number)
                    self._metrics = _bind_tcp(self.metrics)
                for sockets in others:
                    if sockets is not mine:
                        _close(sockets)
                self._sockets = mine
                self._workers.clear()
                _die_with_parent()
                return False
            self._workers.add(pid)
        for sockets in others:
            _close(sockets)
        return True

    def _worker_ended(self) -> None:
        """Stop altogether when a worker ends: with one missing, some clients would get no answer."""
        for pid in list(self._workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._workers.discard(pid)
                if self._stop is not None and not self._stop.is_set():
                    self._failure = DiscoveryError(f"worker {pid} ended (status {status}), and all with it")
                    self._ask_to_stop()

    def _end_workers(self) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in self._workers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._workers.clear()


def _close(sockets: _Sockets) -> None:
    for sock in itertools.chain(*sockets):
        sock.close()


def _die_with_parent() -> None:
    """Have the kernel end this worker with the process that was started, or its ports would stay bound."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# --- binding ---------------------------------------------------------------------------------------------


def _bind(endpoint: Endpoint, *, shared: bool) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a TCP socket on *endpoint*, on the same port also when it asks for any (0).

    Args:
        shared: other processes of ours bind it, too.

    Raises:
        ConfigurationError: it cannot be bound.
    """
    attempts = 1 if endpoint.port else 20  # another process may have the TCP port of the free UDP port
    while True:
        attempts -= 1
        with contextlib.ExitStack() as opened:
            family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
            try:
                udp = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                tcp = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
                for sock in (udp, tcp):
                    if family == socket.AF_INET6:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    if shared:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
                udp.bind((endpoint.host, endpoint.port))
                # A restart must not wait for connections of the last run to time out.
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind((endpoint.host, udp.getsockname()[1]))
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE and attempts:
                    continue
                raise ConfigurationError(_explain(endpoint, exc)) from exc
            udp.setblocking(False)
            tcp.setblocking(False)
            opened.pop_all()
            return udp, tcp


def _bind_tcp(endpoint: Endpoint) -> socket.socket:
    """Return a TCP socket on *endpoint*.

    Raises:
        ConfigurationError: it cannot be bound.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((endpoint.host, endpoint.port))
    except OSError as exc:
        sock.close()
        raise ConfigurationError(_explain(endpoint, exc)) from exc
    sock.setblocking(False)
    return sock


def _explain(endpoint: Endpoint, exc: OSError) -> str:
    wrong = f"cannot listen on {endpoint}"
    match exc.errno:
        case errno.EADDRINUSE:
            return (
                f"{wrong}: another process has that port (often systemd-resolved or dnsmasq; "
                f"`ss -ulpn sport = :{endpoint.port}` names it); stop it, or give another --listen"
            )
        case errno.EACCES:
            return (
                f"{wrong}: ports below 1024 need root or CAP_NET_BIND_SERVICE; "
                "give one of them, or a --listen with a higher port"
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"{wrong}: no interface of this host has that address; "
                "is it up (docker0 comes with the Docker daemon)? `ip address` lists them"
            )
    return f"{wrong}: {exc.strerror}"


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what verifies upstreams over TLS; reading the system's authorities takes tens of milliseconds.

    Raises:
        ConfigurationError: the authorities cannot be read.
    """
    everybody = itertools.chain(settings.upstreams or (), *settings.forward.values())
    if not any(one.tls for one in everybody):
        return None
    try:
        return ssl.create_default_context(cafile=settings.upstream_ca)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigurationError(
            f"cannot read the certificate authorities in --upstream-ca {settings.upstream_ca}: {exc}"
        ) from exc

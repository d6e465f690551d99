"""Registers a process that is no container, and keeps its entry alive while the process lives.

Laws:
- The entry carries a TTL check that this thread renews: a process that dies without a word turns
  critical when the TTL is over.
- An agent that has forgotten the entry (it restarted empty) gets it again with the next beat, as passing.
- An agent that is not there is looked for on and on, with one warning; a refusal is raised to the caller of
  ``start``, and warned of once when it comes later.
- A SIGTERM that would end the process at once, as nobody handles it, deregisters first.
- Only the process that registered deregisters: a forked child's exit must not take its parent out. Where
  several processes have registered one entry, the last of them does.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

from discovery import sources
from discovery.backends import Backend, private
from discovery.durations import MAX_SECONDS
from discovery.errors import ConfigurationError, DiscoveryError, RegistryUnavailable, UnknownResource
from discovery.model import Check, CheckID, Registration, ServiceID
from discovery.names import service_name

__all__ = ["Heartbeat", "mind_sigterm"]

log: Final = logging.getLogger("discovery")

BEAT: Final = 1.0
"""Longest time between two beats, in seconds. A beat costs the agent a local write of nothing new; the
time is how long a restarted empty agent is without the entry."""
FAREWELL: Final = 3.0
"""Seconds that a SIGTERM and ``close`` wait for the agent. Whoever sent a signal will not wait long:
``docker stop`` ten."""
CHECK_INTERVAL: Final = 5.0  # seconds between the agent's HTTP checks
CHECK_TIMEOUT: Final = 3.0  # seconds


class Heartbeat:
    """One registered instance. Use ``start`` and ``close``, or a ``with`` statement.

    Args:
        find: returns the agent to register with. Called with each beat until that has worked once.
        name: the service's name.
        port: the port that the process listens on.
        address: where it can be reached; None lets Consul answer with the node's address.
        ttl: seconds after which a silent process counts as dead.
        service_id: the id; ``<host>:<name>:<port>`` by default, so that the workers of one listening
            socket share one entry.
        check_http: path of an HTTP check that the agent runs besides the heartbeat, ``/health``.
        share: the directory in which processes that share an entry meet, as ``Config.share``; None: each
            takes itself for the only one.

    Raises:
        InvalidName: *name* cannot be a service's.
        ConfigurationError: *port* or *ttl* is out of range.
    """

    def __init__(
        self,
        find: Callable[[], Backend],
        name: str,
        *,
        port: int,
        address: str | None = None,
        tags: Sequence[str] = (),
        meta: Mapping[str, str] | None = None,
        ttl: float = 15.0,
        service_id: str | None = None,
        check_http: str | None = None,
        share: str | None = None,
    ) -> None:
        if not 0 < port <= 65535:
            raise ConfigurationError(f"port={port!r} of {name!r} is not possible: give 1 to 65535")
        if not 1 <= ttl < MAX_SECONDS:
            raise ConfigurationError(
                f"ttl={ttl!r} of {name!r} is not possible: give 1 to {int(MAX_SECONDS)} seconds"
            )
        checked = service_name(name, origin="register")
        identity = ServiceID(service_id or f"{socket.gethostname()}:{checked}:{port}")
        self._find = find
        self._registry: Backend | None = None
        self._check_id = CheckID(f"{identity}:heartbeat")
        checks = [
            Check(id=self._check_id, name="heartbeat of the process", ttl=ttl, initial_status="passing")
        ]
        if check_http is not None:
            host = address or "127.0.0.1"
            netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            checks.append(
                Check(
                    id=CheckID(f"{identity}:http"),
                    name=f"HTTP GET {check_http}",
                    http=f"http://{netloc}/{check_http.lstrip('/')}",
                    interval=CHECK_INTERVAL,
                    timeout=CHECK_TIMEOUT,
                )
            )
        self.registration: Registration = Registration(
            id=identity,
            name=checked,
            port=port,
            address=address or "",
            tags=tuple(tags),
            meta=dict(meta or {}),
            checks=tuple(checks),
        )
        self._companions = _Companions(identity, share)
        # The process serves already: critical until the agent's first HTTP check, it would be missed.
        passing = tuple(replace(check, initial_status="passing") for check in checks)
        self._known = replace(self.registration, checks=passing)
        self._beat = min(ttl / 3, BEAT)
        self._registered = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def start(self) -> Heartbeat:
        """Register now and begin to beat.

        Raises:
            RegistryError: the agent refused the registration. An unreachable agent is no error here.
        """
        try:
            trouble = self._try()
        except BaseException:
            self._companions.close()  # refused: it keeps nothing alive
            raise
        if trouble is not None:
            log.warning("cannot register %s yet, trying on: %s", self.registration.id, trouble)
        self._thread = threading.Thread(
            target=self._run, args=(trouble,), name=f"heartbeat {self.registration.id}", daemon=True
        )
        self._thread.start()
        _running.add(self)
        mind_sigterm()
        return self

    def close(self) -> None:
        """Stop beating and deregister, unless another process of this user keeps the entry; idempotent.

        What an agent has that cannot be reached, or says nothing for ``FAREWELL``, is left to its TTL.
        """
        if self._thread is None or self._stopping.is_set() or os.getpid() != self._pid:
            return
        self._stopping.set()
        self._thread.join(FAREWELL)
        if self._thread.is_alive():
            log.warning("no answer within %g s: %s is left to its TTL", FAREWELL, self.registration.id)

    def __enter__(self) -> Heartbeat:
        return self if self._thread is not None else self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self, trouble: DiscoveryError | None) -> None:
        while not self._stopping.wait(self._beat):
            before, known = trouble, self._registered
            try:
                trouble = self._try()
            except DiscoveryError as exc:
                # Refused in mid-life (a token was revoked): beating on is right, the refusal may end.
                trouble = exc
            if trouble is None:
                if before is not None:
                    now = "the heartbeat of %s is accepted again" if known else "%s is registered now"
                    log.warning(now, self.registration.id)
            elif type(trouble) is not type(before):
                log.warning(
                    "the heartbeat of %s does not arrive, trying on: %s", self.registration.id, trouble
                )
        # Here, not in ``close``, which need not wait for an agent that says nothing.
        if self._registry is None:
            return  # there was never an agent
        try:
            with self._companions.left() as alone:
                if alone:
                    self._registry.deregister(self.registration.id)
        except DiscoveryError as exc:
            log.warning("cannot deregister %s: %s", self.registration.id, exc)

    def _try(self) -> RegistryUnavailable | None:
        """Beat once; return why the agent could not be reached, or None."""
        try:
            if self._registry is None:
                self._registry = self._find()
            self._companions.join(self._registry.where)
            if self._registered:
                try:
                    self._registry.update_check(self._check_id, "passing")
                    return None
                except UnknownResource:
                    log.warning("the agent has forgotten %s; registering it again", self.registration.id)
            self._registry.register(self._known if self._registered else self.registration)
            self._registered = True
        except RegistryUnavailable as exc:
            return exc
        return None


# --- processes that share an entry ----------------------------------------------------------------------


class _Companions:
    """The processes of this user that keep one entry alive: each holds the lock of its file, shared.

    They meet where processes share what they watch (``backends.shared``, which also removes what a crash
    leaves there).
    """

    def __init__(self, service_id: ServiceID, directory: str | None) -> None:
        self._directory = directory
        self._service_id = service_id
        self._name = ""
        self._lock = -1
        _all.add(self)

    def join(self, where: str) -> None:
        """Be one of them at the agent *where*; with each beat, as what nobody touches counts as left over."""
        with suppress(OSError):  # of a directory that is not private, or of the lock that the last one holds
            if self._lock >= 0:
                os.utime(self._lock)
            elif self._directory is not None:
                scope = f"{where} {sources.network()} {self._service_id}"
                self._name = f"{hashlib.sha256(scope.encode()).hexdigest()[:32]}.lock"
                with private.opened(self._directory, create=True) as directory:
                    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
                    self._lock = os.open(self._name, flags, 0o600, dir_fd=directory)
                    try:
                        fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                        if not self._is_there(directory):  # the last one has just removed it
                            self.close()
                    except OSError:
                        self.close()

    @contextmanager
    def left(self) -> Iterator[bool]:
        """Leave, and lend whether nobody stays; nobody joins meanwhile."""
        try:
            if self._lock >= 0:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            yield False
            return
        try:
            yield True
        finally:
            if self._lock >= 0 and self._directory is not None:
                with suppress(OSError), private.opened(self._directory) as directory:
                    if self._is_there(directory):
                        os.unlink(self._name, dir_fd=directory)
            self.close()

    def close(self) -> None:
        """Hold nothing; idempotent. In a forked child: its copy would hold the lock beyond its parent."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _is_there(self, directory: int) -> bool:
        there = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
        return os.path.samestat(there, os.fstat(self._lock))


_all: weakref.WeakSet[_Companions] = weakref.WeakSet()


# --- SIGTERM -------------------------------------------------------------------------------------------

_running: weakref.WeakSet[Heartbeat] = weakref.WeakSet()


def mind_sigterm() -> None:
    """Deregister on SIGTERM from now on, where that would end Python without its exit handlers.

    A handler of the application's is left alone, and so is the signal where this is not the main thread,
    which alone may choose.
    """
    ours_to_choose = threading.current_thread() is threading.main_thread()
    if ours_to_choose and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


_masks = threading.local()  # of the signals that a forking thread had blocked before


def _before_fork() -> None:
    # A signal that meets a child before Python is ready there would find a handler in Python, and be
    # forgotten: whoever ends its child at once would wait for ever. So it waits until nothing handles it.
    if signal.getsignal(signal.SIGTERM) is _terminated:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _after_fork_in_parent() -> None:
    before = _masks.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    if signal.getsignal(signal.SIGTERM) is _terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a child has nothing to deregister
    for companions in list(_all):
        companions.close()
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)


def _terminated(number: int, _frame: object) -> None:
    # In a thread: what this one was doing may hold a lock that deregistering needs.
    farewell = threading.Thread(target=_close_all, name="discovery-farewell", daemon=True)
    farewell.start()
    farewell.join(FAREWELL)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)  # so that whoever waits for this process sees what ended it


def _close_all() -> None:
    for heartbeat in list(_running):
        heartbeat.close()

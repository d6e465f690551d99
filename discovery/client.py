"""The client: names in, instances out.

    lookup("web") ── warm ──> one dictionary read and one pick from a tuple, no lock, no I/O
                  └─ first ─> find a registry, follow the name, wait for its first answer

Laws:
- Every ``lookup`` is a fresh pick; a caller that wants to stay with an instance keeps what it got.
- Round robin begins at a random place, so that a fleet of freshly started processes does not meet on
  the first instance.
- Unreachable keeps the last known instances and marks them ``stale``; an authoritative empty answer is
  an error that says which.
- A ``Client`` may be created anywhere (at import, before a fork) and used from any thread.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from discovery import sources
from discovery.backends import Backend
from discovery.config import Config
from discovery.engine import Engine, Known
from discovery.errors import (
    DiscoveryError,
    NoHealthyInstances,
    RegistryTimeout,
    RegistryUnavailable,
    ServiceNotFound,
)
from discovery.heartbeat import Heartbeat
from discovery.model import Instance, NamesQuery, ServiceName, ServiceQuery, Snapshot
from discovery.names import close_names, fold, service_name

__all__ = ["Client", "Watch", "lookup", "lookup_all", "register", "wait_for", "watch"]

_NO_TAGS: Final[tuple[str, ...]] = ()
_RETRY: Final = 0.1  # seconds between two attempts of wait_for to find a registry at all
_CURSORS: Final = 64
"""Round-robin positions kept per service for lookups with filters; beyond that they start over."""


class Client:
    """Looks services up; the module functions use one that is created on first use.

    Args:
        config: settings; the environment's when None.
        backend: the registry to use, for example an embedded agent's; found by ``sources.find`` when None.
        overrides: single settings of ``Config`` that win over the environment.
    """

    def __init__(
        self, config: Config | None = None, *, backend: Backend | None = None, **overrides: Any
    ) -> None:
        self.config = config if config is not None else Config.from_env(**overrides)
        self._given_backend = backend
        self._backend: Backend | None = backend
        self._engine: Engine | None = None
        self._lock = threading.RLock()
        self._services: dict[tuple[str, str | None], _Service] = {}
        self._warm: dict[str, _Service] = {}  # the same, by name as callers spell it
        self._heartbeats: weakref.WeakSet[Heartbeat] = weakref.WeakSet()
        _clients.add(self)

    def lookup(
        self,
        name: str,
        /,
        *,
        tags: Sequence[str] = _NO_TAGS,
        meta: Mapping[str, str] | None = None,
        dc: str | None = None,
        exclude: Collection[Instance] = (),
        timeout: float | None = None,
        default: Instance | None = None,
    ) -> Instance:
        """Return one healthy instance of *name*: ``host, port = client.lookup("web")``.

        Args:
            tags: the instance has all of these.
            meta: the instance's meta has all of these values.
            dc: the data centre; the agent's own by default.
            exclude: instances not to return, for example those already tried.
            timeout: seconds to wait for the first answer about a name; ``Config.timeout`` by default.
            default: returned instead of raising when nothing can be found.

        Raises:
            InvalidName: *name* cannot be a service's.
            ServiceNotFound: no instance has this name; the error offers close ones.
            NoHealthyInstances: there are instances, and none that may be used.
            RegistryUnavailable, RegistryTimeout, AccessDenied: nothing is known about *name*, and the
                registry could not be asked.
        """
        if not (tags or meta or dc or exclude):
            service = self._warm.get(name)
            if service is not None and (live := service.live):
                service.was_used = True
                return live[service.next() % len(live)]
        try:
            return self._pick(name, tags, meta, dc, exclude, timeout)
        except DiscoveryError:
            if default is None:
                raise
            return default

    def lookup_all(
        self,
        name: str,
        /,
        *,
        tags: Sequence[str] = _NO_TAGS,
        meta: Mapping[str, str] | None = None,
        dc: str | None = None,
        healthy: bool = True,
        timeout: float | None = None,
    ) -> Snapshot:
        """Return all instances of *name*, the critical ones too when *healthy* is False.

        The snapshot is empty when there are none; arguments and other errors are those of ``lookup``.
        """
        service = self._service(name, dc, timeout)
        snapshot = service.healthy if healthy else service.snapshot
        if tags or meta:
            return snapshot.only(lambda instance: _matches(instance, tags, meta))
        return snapshot

    def watch(
        self, name: str, /, *, tags: Sequence[str] = _NO_TAGS, dc: str | None = None, healthy: bool = True
    ) -> Watch:
        """Return the live set of instances of *name*: iterate over it, or give it a callback."""
        checked = service_name(name)
        return Watch(
            self._running_engine(), ServiceQuery(checked, dc or self.config.dc), tuple(tags), healthy
        )

    def wait_for(
        self,
        name: str,
        /,
        *,
        min_instances: int = 1,
        timeout: float = 30.0,
        tags: Sequence[str] = _NO_TAGS,
        dc: str | None = None,
    ) -> Snapshot:
        """Wait until *name* has at least *min_instances* healthy instances, and return them.

        An unreachable registry is waited for too.

        Raises:
            RegistryTimeout: not within *timeout* seconds; the message says how many there were.
        """
        deadline = time.monotonic() + timeout
        found: Snapshot | None = None
        while True:
            try:
                with self.watch(name, tags=tags, dc=dc) as changes:
                    while True:
                        found = changes.next(timeout=deadline - time.monotonic())
                        if len(found) >= min_instances:
                            return found
            except RegistryUnavailable as exc:  # down, or nothing changed until the time was over
                if time.monotonic() + _RETRY >= deadline:
                    count = "no answer" if found is None else f"{len(found)} healthy instances"
                    raise RegistryTimeout(
                        f"waited {timeout:g} s for {min_instances} healthy instances of {name!r}: {count}"
                    ) from exc
                time.sleep(_RETRY)

    def register(
        self,
        name: str,
        /,
        *,
        port: int,
        address: str | None = None,
        tags: Sequence[str] = _NO_TAGS,
        meta: Mapping[str, str] | None = None,
        ttl: float = 15.0,
        service_id: str | None = None,
        check_http: str | None = None,
    ) -> Heartbeat:
        """Register this process as an instance of *name* and keep it alive until it is closed.

        For processes that are no container. See ``Heartbeat`` for the arguments.
        """
        self._running_engine()
        heartbeat = Heartbeat(
            cast(Backend, self._backend),
            name,
            port=port,
            address=address,
            tags=tags,
            meta=meta,
            ttl=ttl,
            service_id=service_id,
            check_http=check_http,
        )
        self._heartbeats.add(heartbeat)
        return heartbeat.start()

    def names(
        self, *, dc: str | None = None, timeout: float | None = None
    ) -> Mapping[ServiceName, tuple[str, ...]]:
        """Return all service names with their tags."""
        timeout = self.config.timeout if timeout is None else timeout
        known = self._running_engine().fetch(NamesQuery(dc or self.config.dc), timeout)
        return cast("Mapping[ServiceName, tuple[str, ...]]", known.value)

    @property
    def where(self) -> str:
        """The registry that is asked, as its address; it is looked for when it is not known yet."""
        return self._running_engine().catalogue.where

    def close(self) -> None:
        """Stop heartbeats and watches and close all connections; idempotent. A later lookup starts anew."""
        with self._lock:
            engine, self._engine = self._engine, None
            backend, self._backend = self._backend, self._given_backend
            self._services.clear()
            self._warm.clear()
        for heartbeat in list(self._heartbeats):
            heartbeat.close()
        if engine is not None:
            engine.close()
        if backend is not None and backend is not self._given_backend:
            backend.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- the slow path: the first lookup of a name, filters, failures

    def _pick(
        self,
        name: str,
        tags: Sequence[str],
        meta: Mapping[str, str] | None,
        dc: str | None,
        exclude: Collection[Instance],
        timeout: float | None,
    ) -> Instance:
        service = self._service(name, dc, timeout)
        live = service.live
        if tags or meta or exclude:
            live = tuple(i for i in live if i not in exclude and _matches(i, tags, meta))
        if not live:
            raise self._nothing(service, tags, meta, exclude)
        cursor = service.cursor((tuple(tags), tuple(sorted((meta or {}).items()))))
        return live[next(cursor) % len(live)]

    def _service(self, name: str, dc: str | None, timeout: float | None) -> _Service:
        key = (fold(name), dc or self.config.dc)
        service = self._services.get(key)
        if service is None or service.asleep or not service.known:
            deadline = time.monotonic() + (self.config.timeout if timeout is None else timeout)
            service = self._follow(key, service_name(name))
            self._running_engine().fetch(service.query, max(deadline - time.monotonic(), 0.05))
            service.asleep = False
        service.was_used = True
        if dc is None:
            self._warm[name] = service
        return service

    def _follow(self, key: tuple[str, str | None], name: ServiceName) -> _Service:
        engine = self._running_engine()
        with self._lock:
            service = self._services.get(key)
            if service is None:
                service = self._services[key] = _Service(ServiceQuery(name, key[1]))
                dropped = functools.partial(self._dropped, key, service)
                engine.subscribe(service.query, service.changed, used=service.used, dropped=dropped)
        return service

    def _dropped(self, key: tuple[str, str | None], service: _Service) -> None:
        with self._lock:
            if self._services.get(key) is service:
                del self._services[key]
            for spelling in [spelling for spelling, other in self._warm.items() if other is service]:
                del self._warm[spelling]

    def _nothing(
        self,
        service: _Service,
        tags: Sequence[str],
        meta: Mapping[str, str] | None,
        exclude: Collection[Instance],
    ) -> DiscoveryError:
        name = service.query.name
        if not service.snapshot:
            try:
                known: Mapping[ServiceName, Any] = self.names(dc=service.query.dc)
            except DiscoveryError:
                known = {}
            close = close_names(name, known)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            return ServiceNotFound(
                f"no service is called {name!r} in the catalogue of {self.where}{hint}", close=close
            )
        failing = [reason for i in service.snapshot if (reason := _why_not(i, tags, meta, exclude))]
        return NoHealthyInstances(
            f"none of the {len(service.snapshot)} instances of {name!r} can be used: {'; '.join(failing[:5])}"
            + ("; ..." if len(failing) > 5 else ""),
            failing=failing,
        )

    def _running_engine(self) -> Engine:
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine
                if engine is None:
                    backend = self._backend or sources.find(self.config)
                    self._backend = backend
                    engine = self._engine = Engine(backend, self.config)
        return engine

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self._warm.clear()
        for service in self._services.values():
            service.asleep = True


class _Service:
    """What the client keeps of one name: ready to pick from, rebuilt in the watching thread."""

    def __init__(self, query: ServiceQuery) -> None:
        self.query = query
        self.known = False
        self.asleep = False
        """Its watch stayed behind in the parent process; the next lookup starts one here."""
        self.was_used = True
        self.live: tuple[Instance, ...] = ()
        self.snapshot = self.healthy = Snapshot(query.name)
        self.next: Callable[[], int] = self._counter().__next__
        self._cursors: dict[object, Iterator[int]] = {}

    def changed(self, known: Known) -> None:
        if known.value is None:
            return
        self.snapshot = snapshot_of(known, self.snapshot)
        self.healthy = self.snapshot.only(_usable)
        self.live = self.healthy.instances
        self.known = True

    def used(self) -> bool:
        used, self.was_used = self.was_used, False
        return used

    def cursor(self, key: object) -> Iterator[int]:
        if len(self._cursors) >= _CURSORS:
            self._cursors.clear()
        return self._cursors.setdefault(key, self._counter())

    @staticmethod
    def _counter() -> itertools.count[int]:
        return itertools.count(random.randrange(1 << 16))


class Watch:
    """The live set of instances of one service.

    Iterating yields a ``Snapshot`` at once and then one for every change; a slow reader gets the newest
    and misses those between. ``on_change`` calls back from a background thread instead. Close it, or
    use it in a ``with`` statement.
    """

    def __init__(self, engine: Engine, query: ServiceQuery, tags: tuple[str, ...], healthy: bool) -> None:
        self._query = query
        self._tags = tags
        self._healthy = healthy
        self._condition = threading.Condition()
        self._callbacks: list[Callable[[Snapshot], None]] = []
        self._latest: Snapshot | None = None
        self._error: DiscoveryError | None = None
        self._unread = False
        self._closed = False
        self._unsubscribe = engine.subscribe(query, self._changed)

    def next(self, timeout: float | None = None) -> Snapshot:
        """Return the next snapshot, waiting up to *timeout* seconds (None: for ever).

        Raises:
            RegistryTimeout: nothing changed in time.
            StopIteration: the watch was closed.
            RegistryError: the registry refuses the question, and nothing is known.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._unread or self._closed or self._error, timeout):
                raise RegistryTimeout(f"{self._query.name!r} did not change in the time given")
            if self._closed:
                raise StopIteration
            if self._unread and self._latest is not None:
                self._unread = False
                return self._latest
            error, self._error = self._error, None
            raise cast(DiscoveryError, error)

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Snapshot:
        return self.next()

    def on_change(self, callback: Callable[[Snapshot], None]) -> Callable[[], None]:
        """Call *callback* with the current snapshot and on every change; returns the unsubscriber."""
        with self._condition:
            self._callbacks.append(callback)
            if self._latest is not None:
                callback(self._latest)

        def unsubscribe() -> None:
            with self._condition:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return unsubscribe

    def close(self) -> None:
        """End the watch; a reader that waits gets StopIteration. Idempotent."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._unsubscribe()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _changed(self, known: Known) -> None:
        with self._condition:
            if known.value is None:
                self._error = known.error
            else:
                self._error = None
                before = self._latest or Snapshot(self._query.name)
                snapshot = snapshot_of(known, before, self._wanted)
                if self._latest is not None and _visible(snapshot) == _visible(self._latest):
                    return  # only the output of a check changed, or an instance that is left out
                self._latest = snapshot
                self._unread = True
                for callback in list(self._callbacks):
                    callback(snapshot)
            self._condition.notify_all()

    def _wanted(self, instance: Instance) -> bool:
        return (not self._healthy or _usable(instance)) and _matches(instance, self._tags, None)


def snapshot_of(known: Known, before: Snapshot, wanted: Callable[[Instance], bool] | None = None) -> Snapshot:
    """Build the snapshot of what is *known* (of a ``ServiceQuery``), compared with the one *before*."""
    instances = tuple(Instance(entry, stale=known.stale) for entry in known.value)
    if wanted is not None:
        instances = tuple(filter(wanted, instances))
    new, old = set(instances), set(before.instances)
    return Snapshot(
        before.service,
        instances,
        consul_index=known.index,
        fetched_at=known.fetched_at,
        stale=known.stale,
        added=tuple(i for i in instances if i not in old),
        removed=tuple(i for i in before.instances if i not in new),
    )


def _visible(snapshot: Snapshot) -> object:
    """What a watcher can tell two snapshots apart by."""
    return snapshot.stale, [(i, i.id, i.status, i.tags, i.meta, i.weight) for i in snapshot]


def _usable(instance: Instance) -> bool:
    return instance.status != "critical"


def _matches(instance: Instance, tags: Sequence[str], meta: Mapping[str, str] | None) -> bool:
    entry = instance.entry
    if any(tag not in entry.tags for tag in tags):
        return False
    return not meta or all(entry.meta.get(key) == value for key, value in meta.items())


def _why_not(
    instance: Instance, tags: Sequence[str], meta: Mapping[str, str] | None, exclude: Collection[Instance]
) -> str | None:
    """Return why *instance* cannot be returned, as ``<id> <reason>``."""
    if not _usable(instance):
        failing = next(check for check in instance.entry.checks if check.status == "critical")
        detail = f": {failing.output.strip().splitlines()[0][:80]}" if failing.output.strip() else ""
        return f"{instance.id} fails check {failing.name or failing.id!r}{detail}"
    if not _matches(instance, tags, meta):
        return f"{instance.id} has tags {list(instance.tags)} and meta {dict(instance.meta)}"
    if instance in exclude:
        return f"{instance.id} is excluded"
    return None


# --- the default client ------------------------------------------------------------------------------

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_default: Client | None = None
_default_lock = threading.Lock()


def _default_client() -> Client:
    global _default
    with _default_lock:
        if _default is None:
            _default = Client()
            # Registered here and not at import: a process that looks nothing up has nothing to close.
            atexit.register(_default.close)
        return _default


def _after_fork_in_child() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


if TYPE_CHECKING:
    # For type checkers the functions are the methods, so that there is one signature of each.
    _typed = Client()
    lookup, lookup_all, watch = _typed.lookup, _typed.lookup_all, _typed.watch
    wait_for, register = _typed.wait_for, _typed.register
else:

    def lookup(name, /, **options):
        """As ``Client.lookup``, on the default client."""
        return (_default or _default_client()).lookup(name, **options)

    def lookup_all(name, /, **options):
        """As ``Client.lookup_all``, on the default client."""
        return (_default or _default_client()).lookup_all(name, **options)

    def watch(name, /, **options):
        """As ``Client.watch``, on the default client."""
        return (_default or _default_client()).watch(name, **options)

    def wait_for(name, /, **options):
        """As ``Client.wait_for``, on the default client."""
        return (_default or _default_client()).wait_for(name, **options)

    def register(name, /, **options):
        """As ``Client.register``, on the default client."""
        return (_default or _default_client()).register(name, **options)

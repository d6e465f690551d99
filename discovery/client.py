"""The client: names in, instances out.

    lookup("web") ── warm ──> one dictionary read and one pick from a tuple, no lock, no I/O
                  └─ first ─> find a registry, follow the name, wait for its first answer

Laws:
- Every ``lookup`` is a fresh pick; a caller that wants to stay with an instance keeps what it got, or
  passes a ``key``.
- What takes more than a turn (a filter, a strategy, an ejected instance) leaves the warm path, which
  stays as short as it is.
- Decisions are generators that yield the queries they need an answer to (``_Steps``): the ``Client``
  waits for answers in its caller's thread, the ``AsyncClient`` in its event loop, and neither decides.
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
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, Unpack, cast

from discovery import balance, sources
from discovery.backends import Backend
from discovery.backends.chain import Chain
from discovery.config import Config
from discovery.engine import Engine, Known
from discovery.errors import (
    Attempt,
    DiscoveryError,
    LookupFailed,
    NoHealthyInstances,
    RegistryError,
    RegistryTimeout,
    RegistryUnavailable,
    ServiceNotFound,
)
from discovery.heartbeat import Heartbeat
from discovery.model import Instance, NamesQuery, Query, ServiceName, ServiceQuery, Snapshot
from discovery.names import close_names, fold, service_name

__all__ = [
    "Client",
    "Options",
    "Watch",
    "call",
    "default_client",
    "lookup",
    "lookup_all",
    "register",
    "wait_for",
    "watch",
]

_T = TypeVar("_T")
_Steps = Generator[Query, Known, _T]
"""A decision: yields each query that it needs an answer to, is sent the answer, returns the result."""

_NO_TAGS: Final[tuple[str, ...]] = ()
_RETRY: Final = 0.1  # seconds between two attempts of wait_for to find a registry at all
_VIEWS: Final = 64
"""Filters that are remembered per service, with their place in the round; beyond that they start over."""


class Options(TypedDict, total=False):
    """The keyword arguments of ``Client.lookup``, which other methods pass on to it."""

    tags: Sequence[str]
    meta: Mapping[str, str] | None
    dc: str | None
    near: str | None
    zone: str | None
    failover: Sequence[str]
    strategy: str | balance.Strategy | None
    key: str | None
    exclude: Collection[Instance]
    timeout: float | None
    default: Instance | None


class Client:
    """Looks services up; the module functions use one that is created on first use.

    Args:
        config: settings; the environment's when None.
        backend: the registry to use, for example an embedded agent's; None: those of ``sources``.
        overrides: single settings of ``Config`` that win over *config* and the environment.

    Raises:
        ConfigurationError: a variable of the environment or an override cannot be used.
    """

    def __init__(
        self, config: Config | None = None, *, backend: Backend | None = None, **overrides: Any
    ) -> None:
        self.config = Config.from_env(**overrides) if config is None else config.but(**overrides)
        self._given = backend
        self._registry: Backend | None = backend  # None: not needed yet
        self._catalogue: Backend | Chain | None = backend
        self._engine: Engine | None = None
        self._lock = threading.RLock()
        self._services: dict[_Key, _Service] = {}
        self._warm: dict[str, _Service] = {}  # the same, by name as callers spell it
        self._tallies: dict[str, _Tally] = {}  # by folded name
        self._heartbeats: weakref.WeakSet[Heartbeat] = weakref.WeakSet()
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        _clients.add(self)

    def lookup(
        self,
        name: str,
        /,
        *,
        tags: Sequence[str] = _NO_TAGS,
        meta: Mapping[str, str] | None = None,
        dc: str | None = None,
        near: str | None = None,
        zone: str | None = None,
        failover: Sequence[str] = (),
        strategy: str | balance.Strategy | None = None,
        key: str | None = None,
        exclude: Collection[Instance] = (),
        timeout: float | None = None,
        default: Instance | None = None,
    ) -> Instance:
        """Return one healthy instance of *name*: ``host, port = client.lookup("web")``.

        Args:
            tags: the instance has all of these.
            meta: the instance's meta has all of these values.
            dc: the data centre; the agent's own by default.
            near: the node to be near to by round-trip time, ``_agent`` for the agent's own; the nearest
                instance is returned unless a *strategy* is given too.
            zone: prefer instances of this zone; others are used when it has none. ``Config.zone`` by
                default.
            failover: data centres to try in turn when the first has no instance that may be used, or
                cannot be asked. ``Config.failover`` by default.
            strategy: which of several; a name from ``discovery.balance.STRATEGIES`` (``round_robin``,
                ``random``, ``weighted``, ``least_loaded``, ``ewma``, ``ring_hash``, ``sticky``) or an
                object of your own. ``Config.strategy`` by default.
            key: what to meet the same instance for, with ``ring_hash`` (its default) or ``sticky``.
            exclude: instances not to return, for example those already tried.
            timeout: seconds to wait for the first answer about a name; ``Config.timeout`` by default.
            default: returned instead of raising when nothing can be found.

        Raises:
            InvalidName: *name* cannot be a service's.
            ServiceNotFound: no instance has this name; the error offers close ones.
            NoHealthyInstances: there are instances, and none that may be used.
            RegistryUnavailable, RegistryTimeout, AccessDenied: nothing is known about *name*, and the
                registry could not be asked.
            ConfigurationError: no strategy has that name, or it needs a *key*.
        """
        if not (tags or meta or dc or near or zone or failover or strategy or key is not None or exclude):
            service = self._warm.get(name)
            if service is not None and (live := service.live):
                service.was_used = True
                return live[service.next() % len(live)]
        wish = self._wish(tags, meta, dc, near, zone, failover, strategy, key, exclude)
        try:
            return self._run(self._choose(name, wish), timeout)
        except (LookupFailed, RegistryUnavailable, RegistryError):
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
        near: str | None = None,
        healthy: bool = True,
        timeout: float | None = None,
    ) -> Snapshot:
        """Return all instances of *name*, the critical ones too when *healthy* is False.

        The snapshot is empty when there are none; with *near* the nearest come first. Arguments and
        other errors are those of ``lookup``.
        """
        service = self._run(self._service(name, dc, near), timeout)
        snapshot = service.healthy if healthy else service.snapshot
        if tags or meta:
            return snapshot.only(lambda instance: _matches(instance, tags, meta))
        return snapshot

    @contextmanager
    def borrow(self, name: str, /, **options: Unpack[Options]) -> Iterator[Instance]:
        """Lend one instance for the time of a ``with`` statement, and learn from how that went.

        Its length is the call's latency, an ``Exception`` that leaves it is the call's failure: they feed
        the strategies ``least_loaded`` and ``ewma`` and the ejection of instances that keep failing.
        Arguments and errors are those of ``lookup``.
        """
        instance = self.lookup(name, **options)
        with self._lend(instance):
            yield instance

    def report(self, instance: Instance, *, ok: bool, latency: float | None = None) -> None:
        """Tell how a call to *instance* went, where ``borrow`` cannot see it.

        Three failures in a row take an instance out of lookups for some seconds, unless more than half of
        its service would be out: then all are used.

        Args:
            latency: seconds that it took.
        """
        tally = self._tally(instance.service)
        with tally.lock:
            if tally.stats.report(instance, ok=ok, latency=latency):
                self._refresh(tally)

    def call(
        self,
        name: str,
        fn: Callable[[Instance], _T],
        /,
        *,
        attempts: int = 3,
        retry_on: tuple[type[Exception], ...] = (ConnectionError,),
        **options: Unpack[Options],
    ) -> _T:
        """Return ``fn(instance)``; when that cannot connect, try again with another instance.

        Args:
            fn: what to do with an instance. It may run more than once: pass exceptions in *retry_on* that
                leave no doubt that nothing was done, or make it something that may be done twice.
            attempts: how many instances to try at most.
            retry_on: exceptions of *fn* after which another instance is tried. How often is limited to a
                fifth of all calls (and one a second), so that an overload does not feed itself.
            options: those of ``lookup``.

        Raises:
            Exception: what *fn* raised last; its note says which instances were tried.
            LookupFailed, RegistryUnavailable, RegistryError: as ``lookup``, before anything was tried.
        """
        trial = _Trial(self, name, attempts, options)
        while True:
            try:
                instance = self.lookup(name, **trial.options)
            except LookupFailed as exc:
                trial.nobody_left(exc)
                raise
            try:
                with self._lend(instance):
                    return fn(instance)
            except retry_on as exc:
                if not trial.again(instance, exc):
                    raise

    def watch(
        self, name: str, /, *, tags: Sequence[str] = _NO_TAGS, dc: str | None = None, healthy: bool = True
    ) -> Watch:
        """Return the live set of instances of *name*: iterate over it, or give it a callback.

        It ends when it is closed, or this client is.
        """
        query = ServiceQuery(service_name(name), dc or self.config.dc)
        watch = Watch(self._running_engine(), query, tuple(tags), healthy)
        self._watches.add(watch)
        return watch

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
            ServiceNotFound, NoHealthyInstances: not within *timeout* seconds; the reason is the one that
                ``lookup`` gives, or how many there were.
            RegistryUnavailable: the registry could not be asked in that time.
            RegistryError: it refuses the question.
        """
        deadline = time.monotonic() + timeout
        wanted = f"waited {timeout:g} s for {min_instances} healthy instance(s) of {name!r}"
        found: Snapshot | None = None
        failure: RegistryUnavailable | None = None
        with self._watch_by(deadline, name, tags=tags, dc=dc) as changes:
            while failure is None or time.monotonic() < deadline:
                try:
                    found = changes.next(max(deadline - time.monotonic(), 0.0))
                except RegistryUnavailable as exc:  # down, or nothing has changed in the time that was left
                    failure = exc
                except StopIteration:
                    raise RegistryUnavailable(f"{wanted}, and this client was closed") from None
                else:
                    if len(found) >= min_instances:
                        return found
        if found is None:
            raise RegistryTimeout(f"{wanted}, and the registry could not be asked: {failure}") from failure
        if not found:
            self.lookup(name, tags=tags, dc=dc)  # raises the error that says why there is none
        raise NoHealthyInstances(f"{wanted}, and found {len(found)}")

    def _watch_by(self, deadline: float, name: str, **options: Any) -> Watch:
        """As ``watch``, trying until *deadline* to find a registry at all."""
        while True:
            try:
                return self.watch(name, **options)
            except RegistryUnavailable:
                if time.monotonic() + _RETRY >= deadline:
                    raise
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
        with self._lock:
            if self._registry is None:
                self._registry = sources.find(self.config)
        heartbeat = Heartbeat(
            self._registry,
            name,
            port=port,
            address=address,
            tags=tags,
            meta=meta,
            ttl=ttl,
            service_id=service_id,
            check_http=check_http,
        )
        heartbeat.start()
        self._heartbeats.add(heartbeat)  # not before: what the agent refused is not ours to deregister
        return heartbeat

    def names(
        self, *, dc: str | None = None, timeout: float | None = None
    ) -> Mapping[ServiceName, tuple[str, ...]]:
        """Return all service names with their tags."""
        return self._run(self._names(dc), timeout)

    @property
    def where(self) -> str:
        """The addresses of what is asked."""
        return self._running_engine().catalogue.where

    def close(self) -> None:
        """Stop heartbeats and watches and close all connections; idempotent. A later lookup starts anew."""
        with self._lock:
            engine, self._engine = self._engine, None
            opened = [self._registry, self._catalogue]
            self._registry = self._catalogue = self._given
            self._services.clear()
            self._warm.clear()
            self._tallies.clear()
        for heartbeat in list(self._heartbeats):
            heartbeat.close()
        for watch in list(self._watches):
            watch.close()
        if engine is not None:
            engine.close()
        for source in opened:
            if source is not None and source is not self._given:
                source.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- decisions; see _Steps

    def _wish(
        self,
        tags: Sequence[str],
        meta: Mapping[str, str] | None,
        dc: str | None,
        near: str | None,
        zone: str | None,
        failover: Sequence[str],
        strategy: str | balance.Strategy | None,
        key: str | None,
        exclude: Collection[Instance],
    ) -> _Wish:
        if strategy is None:
            strategy = "first" if near else "ring_hash" if key is not None else self.config.strategy
        return _Wish(
            tuple(tags),
            tuple(sorted(meta.items())) if meta else (),
            zone or self.config.zone,
            (dc, *(failover or self.config.failover)),
            near,
            strategy,
            key,
            exclude,
        )

    def _choose(self, name: str, wish: _Wish) -> _Steps[Instance]:
        asked: list[_Service] = []
        failure: RegistryUnavailable | RegistryError | None = None
        for dc in wish.dcs:
            try:
                service = yield from self._service(name, dc, wish.near)
            except (RegistryUnavailable, RegistryError) as exc:
                failure = failure or exc
                continue
            self._expire(service.tally)
            instance = service.pick(wish)
            if instance is not None:
                return instance
            asked.append(service)
        if failure is not None:
            raise failure
        raise (yield from self._nothing(asked, wish))

    def _service(self, name: str, dc: str | None, near: str | None = None) -> _Steps[_Service]:
        key = (fold(name), dc or self.config.dc, near)
        service = self._services.get(key)
        if service is None:
            query = ServiceQuery(service_name(name), key[1], near)
            known = yield query
            service = self._follow(key, query, known)
        service.was_used = True
        if dc is None and near is None:
            self._warm[name] = service
        return service

    def _names(self, dc: str | None) -> _Steps[Mapping[ServiceName, tuple[str, ...]]]:
        known = yield NamesQuery(dc or self.config.dc)
        return cast("Mapping[ServiceName, tuple[str, ...]]", known.value)

    def _nothing(self, asked: Sequence[_Service], wish: _Wish) -> _Steps[DiscoveryError]:
        name = asked[0].query.name
        everyone = [instance for service in asked for instance in service.snapshot]
        attempts = [attempt for service in asked for attempt in service.attempts(self.where)]
        if not everyone:
            try:
                known: Mapping[ServiceName, Any] = yield from self._names(asked[0].query.dc)
            except DiscoveryError:
                known = {}
            close = close_names(name, known)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            return ServiceNotFound(
                f"no service is called {name!r} in the catalogue of {asked[0].where or self.where}{hint}",
                close=close,
                attempts=attempts,
            )
        failing = [reason for instance in everyone if (reason := wish.why_not(instance))]
        return NoHealthyInstances(
            f"none of the {len(everyone)} instances of {name!r} can be used: {'; '.join(failing[:5])}"
            + ("; ..." if len(failing) > 5 else ""),
            failing=failing,
            attempts=attempts,
        )

    # --- carrying them out

    def _run(self, steps: _Steps[_T], timeout: float | None) -> _T:
        """Carry *steps* out, waiting for answers in this thread, *timeout* seconds in all."""
        engine = self._running_engine()  # before the clock starts: the first one loads the libraries
        deadline = time.monotonic() + (self.config.timeout if timeout is None else timeout)
        try:
            query = next(steps)
            while True:
                try:
                    known = engine.fetch(query, max(deadline - time.monotonic(), 0.05))
                except DiscoveryError as exc:
                    query = steps.throw(exc)
                else:
                    query = steps.send(known)
        except StopIteration as end:
            result: _T = end.value
            return result

    def _follow(self, key: _Key, query: ServiceQuery, known: Known) -> _Service:
        """Keep what is *known* of a service fresh from now on."""
        engine = self._running_engine()
        with self._lock:
            service = self._services.get(key)
            if service is None:
                service = _Service(query, known, self._tally(query.name), self.config)
                dropped = functools.partial(self._dropped, key, service)
                # Subscribed before anybody can find it: one that nobody keeps fresh would answer for ever.
                engine.subscribe(query, service.changed, used=service.used, dropped=dropped)
                self._services[key] = service
        return service

    def _dropped(self, key: _Key, service: _Service) -> None:
        with self._lock:
            if self._services.get(key) is service:
                del self._services[key]
            for spelling, other in list(self._warm.items()):
                if other is service:
                    del self._warm[spelling]
        service.retire()

    def _lend(self, instance: Instance) -> _Loan:
        return _Loan(self, self._tally(instance.service), instance)

    def _tally(self, name: str) -> _Tally:
        tally = self._tallies.get(fold(name))
        # setdefault: two threads that meet here get the same one
        return tally or self._tallies.setdefault(fold(name), _Tally())

    def _expire(self, tally: _Tally) -> None:
        if tally.stats.ejected:
            with tally.lock:
                if tally.stats.expire():
                    self._refresh(tally)

    def _refresh(self, tally: _Tally) -> None:
        for service in tally.services:
            service.refresh()

    def _running_engine(self) -> Engine:
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine
                if engine is None:
                    chain = None
                    if self._catalogue is None:
                        self._catalogue = chain = sources.catalogue(self.config)
                    engine = Engine(self._catalogue, self.config)
                    if chain is not None:
                        chain.known = engine.peek
                    self._engine = engine
        return engine

    def _after_fork(self) -> None:
        # Their subscriptions stayed behind in the parent; the next lookup of each name makes a new one.
        self._lock = threading.RLock()
        self._services.clear()
        self._warm.clear()
        for tally in self._tallies.values():
            tally.after_fork()


_Key = tuple[str, str | None, str | None]
"""Of a service: its name folded, the data centre, and the node it is ordered by distance from."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a lookup asks for."""

    tags: tuple[str, ...]
    meta: tuple[tuple[str, str], ...]
    zone: str | None
    dcs: tuple[str | None, ...]
    near: str | None
    strategy: str | balance.Strategy
    key: str | None
    exclude: Collection[Instance]

    def matches(self, instance: Instance) -> bool:
        return _matches(instance, self.tags, dict(self.meta))

    def why_not(self, instance: Instance) -> str | None:
        """Return why *instance* cannot be returned, as ``<id> <reason>``."""
        if not _usable(instance):
            return f"{instance.id} fails {_failing_check(instance)}"
        if not self.matches(instance):
            return f"{instance.id} has tags {list(instance.tags)} and meta {dict(instance.meta)}"
        if instance in self.exclude:
            return f"{instance.id} is excluded"
        return None


class _Tally:
    """What calls have told about one service, in whichever data centre, and how often it may be retried."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.services: list[_Service] = []
        self.stats = balance.Stats(time.monotonic)
        self.budget = balance.RetryBudget(time.monotonic)

    def after_fork(self) -> None:
        self.lock = threading.Lock()
        self.services.clear()
        self.stats.nothing_under_way()  # the calls of the parent's other threads do not end here


class _View:
    """The instances that match one filter, and the strategies that have begun on them."""

    __slots__ = ("matching", "strategies", "usable")

    def __init__(self) -> None:
        self.matching: tuple[Instance, ...] | None = None
        self.usable: Sequence[Instance] = ()
        self.strategies: dict[str, balance.Strategy] = {}


class _Service:
    """What the client keeps of one name: ready to pick from, rebuilt in the watching thread."""

    def __init__(self, query: ServiceQuery, known: Known, tally: _Tally, config: Config) -> None:
        self.query = query
        self.tally = tally
        self.was_used = True
        self.live: Sequence[Instance] = ()
        """What the warm path takes turns on; empty where it takes more than a turn."""
        self.next: Callable[[], int] = itertools.count(random.randrange(1 << 16)).__next__
        self.snapshot = self.healthy = Snapshot(query.name)
        self.where = ""
        self._asked: tuple[Attempt, ...] = ()  # in vain, before it was answered
        self._elapsed = 0.0
        self._config = config
        self._views: dict[object, _View] = {}
        with tally.lock:
            tally.services.append(self)
        self.changed(known)

    def changed(self, known: Known) -> None:
        if known.value is None:
            return
        snapshot = _compared(snapshot_of(self.query, known), self.snapshot)
        healthy = _compared(snapshot.only(_usable), self.healthy)
        with self.tally.lock:
            self.snapshot, self.healthy = snapshot, healthy
            self.where, self._asked, self._elapsed = known.where, known.attempts, known.elapsed
            self.tally.stats.keep({i for service in self.tally.services for i in service.snapshot})
            self.refresh()

    def attempts(self, where: str) -> Iterator[Attempt]:
        """Say who was asked about this service and what came of it; *where* is the registry by default."""
        yield from self._asked
        found = f"{len(self.healthy)} of {len(self.snapshot)} healthy" if self.snapshot else "no instance"
        yield Attempt(self.where or where, self._elapsed, found)

    def retire(self) -> None:
        """Nobody keeps it fresh any more: a lookup that still holds it must ask anew."""
        with self.tally.lock:
            if self in self.tally.services:
                self.tally.services.remove(self)
            self.live = ()

    def refresh(self) -> None:
        """Make ``live`` and the views anew, after a change or an ejection. The tally's lock is held."""
        for view in list(self._views.values()):
            view.matching = None
        if self._config.strategy != "round_robin" or self.tally.stats.ejected:
            self.live = ()
        else:
            self.live = _preferred(self.healthy.instances, self._config.zone)

    def used(self) -> bool:
        used, self.was_used = self.was_used, False
        return used

    def pick(self, wish: _Wish) -> Instance | None:
        """Return the instance for *wish*, or None when there is none."""
        view = self._view(wish)
        live = view.usable
        if wish.exclude:
            # One that is ejected is still better than none.
            live = [i for i in live if i not in wish.exclude] or [
                i for i in view.matching or () if i not in wish.exclude
            ]
        if not live:
            return None
        strategy = wish.strategy
        if strategy == "round_robin" and live == self.live:
            # The turns of the warm path, so that the first lookup and the second meet different instances.
            return live[self.next() % len(live)]
        if isinstance(strategy, str):
            known = view.strategies.get(strategy)
            # setdefault: the turns of two threads that meet here count together
            strategy = known or view.strategies.setdefault(
                strategy, balance.strategy(strategy, random.randrange)
            )
        return strategy.pick(live, self.tally.stats, wish.key)

    def _view(self, wish: _Wish) -> _View:
        key = (wish.tags, wish.meta, wish.zone)
        view = self._views.get(key)
        if view is None:
            with self.tally.lock:
                if len(self._views) >= _VIEWS:
                    self._views.clear()
                view = self._views.setdefault(key, _View())
        if view.matching is None:
            with self.tally.lock:
                healthy = self.healthy.instances
                matching = tuple(filter(wish.matches, healthy)) if wish.tags or wish.meta else healthy
                matching = _preferred(matching, wish.zone)
                view.usable = self.tally.stats.usable(matching)
                view.matching = matching
        return view


class _Loan:
    """One call to an instance: counted while it lasts, judged by how it ends."""

    __slots__ = ("_began_at", "_client", "_instance", "_tally")

    def __init__(self, client: Client, tally: _Tally, instance: Instance) -> None:
        self._client = client
        self._tally = tally
        self._instance = instance
        self._began_at = 0.0

    def __enter__(self) -> Instance:
        with self._tally.lock:
            self._tally.stats.begin(self._instance)
        self._began_at = time.monotonic()
        return self._instance

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._tally.lock:
            self._tally.stats.end(self._instance)
        # A cancelled call or an interrupted program says nothing about the instance.
        if kind is None or issubclass(kind, Exception):
            latency = time.monotonic() - self._began_at
            self._client.report(self._instance, ok=kind is None, latency=latency)


class _Trial:
    """One ``call``: which instances were tried, and whether another one may be."""

    def __init__(self, client: Client, name: str, attempts: int, options: Options) -> None:
        self._left = attempts
        self._tally = client._tally(name)
        self._given = tuple(options.get("exclude", ()))
        self._tried: list[Instance] = []
        self._last: Exception | None = None
        self.options: Options = options
        with self._tally.lock:
            self._tally.budget.deposit()

    def again(self, instance: Instance, exc: Exception) -> bool:
        """Say whether to try another instance, after *exc* from this one."""
        self._tried.append(instance)
        self._last = exc
        self._left -= 1
        if self._left <= 0:
            return self._over(exc, f"{len(self._tried)} attempts were allowed")
        with self._tally.lock:
            if not self._tally.budget.withdraw():
                return self._over(exc, "the retry budget is spent: a fifth of all calls, and one a second")
        self.options = {**self.options, "exclude": (*self._given, *self._tried)}
        return True

    def nobody_left(self, exc: LookupFailed) -> None:
        """No instance is left to try: raise the failure of the last one, if any was tried."""
        if self._last is not None:
            self._over(self._last, "there is no other instance")
            raise self._last from None

    def _over(self, exc: Exception, reason: str) -> bool:
        exc.add_note(f"tried {', '.join(map(str, self._tried))}; {reason}")
        return False


class Watch:
    """The live set of instances of one service.

    Iterating yields a ``Snapshot`` at once and then one for every change; a slow reader gets the newest,
    compared with the one that it got before. ``on_change`` calls back from a background thread instead.
    Close it, or use it in a ``with`` statement.
    """

    def __init__(self, engine: Engine, query: ServiceQuery, tags: tuple[str, ...], healthy: bool) -> None:
        self._engine = engine
        self._query = query
        self._tags = tags
        self._healthy = healthy
        self._closed = False
        self._ends: list[Callable[[], None]] = []  # of the subscriptions
        self._given: Snapshot | None = None  # to the reader, last
        self._latest: Snapshot | None = None  # None: nothing new since
        self._error: DiscoveryError | None = None
        self._begin()

    def next(self, timeout: float | None = None) -> Snapshot:
        """Return the next snapshot, waiting up to *timeout* seconds (None: for ever).

        Raises:
            RegistryTimeout: nothing changed in time.
            StopIteration: the watch was closed.
            RegistryUnavailable, RegistryError: nothing is known, and the registry cannot be asked or refuses
                the question. Each failure is raised once; call again to wait for its end.
        """
        if os.getpid() != self._pid:
            self._begin()  # the subscription stayed behind in the parent process
        patience = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        with self._condition:
            if not self._condition.wait_for(self._has_news, patience):
                raise RegistryTimeout(f"{self._query.name!r} did not change in the time given")
            if self._closed:
                raise StopIteration
            if self._latest is not None:
                self._given, self._latest = _compared(self._latest, self._given), None
                return self._given
            error, self._error = self._error, None
            raise cast(DiscoveryError, error)

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Snapshot:
        return self.next()

    def on_change(self, callback: Callable[[Snapshot], None]) -> Callable[[], None]:
        """Call *callback* with the current snapshot and on every change; returns the unsubscriber.

        What is known already it is given before this returns, in this thread; all else in a background
        thread. In a forked child, and once the watch is closed, it is not called.
        """
        given: Snapshot | None = None

        def changed(known: Known) -> None:
            nonlocal given
            if known.value is not None:
                snapshot = self._snapshot(known)
                if given is None or _visible(snapshot) != _visible(given):
                    given = _compared(snapshot, given)
                    callback(given)

        if self._closed:
            return lambda: None
        end = self._engine.subscribe(self._query, changed)
        self._ends.append(end)
        return end

    def close(self) -> None:
        """End the watch; a reader that waits gets StopIteration. Idempotent."""
        if os.getpid() != self._pid:
            self._condition = threading.Condition()  # a thread of the parent may have held the old one
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for end in self._ends:
            end()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._condition = threading.Condition()
        if not self._closed:
            self._ends.append(self._engine.subscribe(self._query, self._changed))

    def _changed(self, known: Known) -> None:
        with self._condition:
            if known.value is None:
                self._error = known.error
            else:
                self._error = None
                snapshot, given = self._snapshot(known), self._given
                # Nothing new when only the output of a check changed, or an instance that is left out.
                same = given is not None and _visible(snapshot) == _visible(given)
                self._latest = None if same else snapshot
            self._condition.notify_all()

    def _has_news(self) -> bool:
        return self._closed or self._latest is not None or self._error is not None

    def _snapshot(self, known: Known) -> Snapshot:
        def wanted(instance: Instance) -> bool:
            return (not self._healthy or _usable(instance)) and _matches(instance, self._tags, None)

        return snapshot_of(self._query, known).only(wanted)


def snapshot_of(query: ServiceQuery, known: Known) -> Snapshot:
    """Build the snapshot of what is *known* about *query*."""
    return Snapshot(
        query.name,
        tuple(Instance(entry, source=known.source, stale=known.stale) for entry in known.value),
        consul_index=known.index,
        fetched_at=known.fetched_at,
        source=known.source,
        stale=known.stale,
    )


def _compared(snapshot: Snapshot, before: Snapshot | None) -> Snapshot:
    """Return *snapshot* with what came and went since the one *before*."""
    new, old = set(snapshot), set(before or ())
    return replace(
        snapshot,
        added=tuple(i for i in snapshot if i not in old),
        removed=tuple(i for i in before or () if i not in new),
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


def _failing_check(instance: Instance) -> str:
    failing = next(check for check in instance.entry.checks if check.status == "critical")
    detail = f": {failing.output.strip().splitlines()[0][:80]}" if failing.output.strip() else ""
    return f"check {failing.name or failing.id!r}{detail}"


def _preferred(instances: tuple[Instance, ...], zone: str | None) -> tuple[Instance, ...]:
    """Return those of the *zone* when there are any, else all."""
    if zone is None:
        return instances
    return tuple(i for i in instances if i.zone == zone) or instances


# --- the default client ------------------------------------------------------------------------------

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_default: Client | None = None
_default_lock = threading.Lock()


def default_client() -> Client:
    """Return the client behind the module functions, which is created on first use."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Client()
        return _default


def _close_all() -> None:
    """At exit: deregister what is registered, and leave no socket for the interpreter to warn of."""
    for client in list(_clients):
        client.close()


atexit.register(_close_all)


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
    wait_for, call, register = _typed.wait_for, _typed.call, _typed.register
else:

    def lookup(name, /, **options):
        """As ``Client.lookup``, on the default client."""
        return (_default or default_client()).lookup(name, **options)

    def lookup_all(name, /, **options):
        """As ``Client.lookup_all``, on the default client."""
        return (_default or default_client()).lookup_all(name, **options)

    def watch(name, /, **options):
        """As ``Client.watch``, on the default client."""
        return (_default or default_client()).watch(name, **options)

    def wait_for(name, /, **options):
        """As ``Client.wait_for``, on the default client."""
        return (_default or default_client()).wait_for(name, **options)

    def call(name, fn, /, **options):
        """As ``Client.call``, on the default client."""
        return (_default or default_client()).call(name, fn, **options)

    def register(name, /, **options):
        """As ``Client.register``, on the default client."""
        return (_default or default_client()).register(name, **options)

"""The client: names in, instances out.

    lookup("web") ── warm ──> one dictionary read and one pick from a tuple, no lock, no I/O
                  └─ first ─> find a registry, follow the name, wait for its first answer

Laws:
- Every ``lookup`` is a fresh pick; a caller that wants to stay with an instance keeps what it got, or
  passes a ``key``.
- What takes more than a turn (a filter, a strategy, an ejected instance) leaves the warm path, which
  stays as short as it is.
- Decisions are generators that yield the queries they need an answer to (``Steps``): the ``Client``
  waits for answers in its caller's thread, the ``AsyncClient`` in its event loop, and neither decides.
- Unreachable keeps the last known instances and marks them ``stale``; an authoritative empty answer is
  an error that says which.
- A ``Client`` may be created anywhere (at import, before a fork) and used from any thread.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, cast

from discovery import balance, sources
from discovery.backends import Backend
from discovery.backends.chain import Chain
from discovery.changes import Awaited, Watch, matches
from discovery.config import Config
from discovery.engine import Engine, Known
from discovery.errors import (
    Attempt,
    DiscoveryError,
    LookupFailed,
    NoHealthyInstances,
    RegistryError,
    RegistryUnavailable,
    ServiceNotFound,
)
from discovery.heartbeat import Heartbeat
from discovery.model import Instance, NamesQuery, Query, ServiceName, ServiceQuery, Snapshot
from discovery.names import close_names, fold, service_name
from discovery.service import Candidate, Explanation, Loan, Options, Service, Tally, Trial, Wish, excluded

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
Steps = Generator[Query, Known, _T]
"""A decision: yields each query that it needs an answer to, is sent the answer, returns the result."""

_NO_TAGS: Final[tuple[str, ...]] = ()
_Key = tuple[str, str | None, str | None]
"""Of a service: its name folded, the data centre, and the node it is ordered by distance from."""


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
        self.config: Config = Config.from_env(**overrides) if config is None else config.but(**overrides)
        self._given = backend
        self._registry: Backend | None = backend  # None: not needed yet
        self._catalogue: Backend | Chain | None = backend
        self._engine: Engine | None = None
        self._lock = threading.RLock()
        self._services: dict[_Key, Service] = {}
        self._warm: dict[str, Service] = {}  # the same, by name as callers spell it
        self._tallies: dict[str, Tally] = {}  # by folded name
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
        exclude: Collection[Instance] | Instance = (),
        timeout: float | None = None,
        default: Instance | None = None,
    ) -> Instance:
        """Return one healthy instance of *name*: ``host, port = client.lookup("web")``.

        Args:
            tags: the instance has all of these, in whichever case.
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
            exclude: instances not to return, or one, for example those already tried.
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
        other errors are those of ``lookup``, except that one data centre is asked: there is no failover.
        """
        return self._run(self._all(name, tags, meta, dc, near, healthy), timeout)

    def explain(self, name: str, /, **options: Unpack[Options]) -> Explanation:
        """Say how ``lookup`` with the same arguments comes to what it returns, instance by instance.

        Data centres that could not be asked are among the ``attempts``.

        Raises:
            RegistryUnavailable, RegistryError: as ``lookup``, and no data centre told of an instance.
        """
        return self._run(self._explain(name, self._wish(**options)), options.get("timeout"))

    @contextmanager
    def borrow(self, name: str, /, **options: Unpack[Options]) -> Iterator[Instance]:
        """Lend one instance for the time of a ``with`` statement, and learn from how that went.

        Its length is the call's latency, an ``Exception`` that leaves it is the call's failure: they feed
        the strategies ``least_loaded`` and ``ewma`` and the ejection of instances that keep failing. Raise
        where an answer is a failure: the statement's good end counts as success, whatever was reported in it.
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
        self._tally(instance.service).report(instance, ok=ok, latency=latency)

    def call(
        self,
        name: str,
        fn: Callable[[Instance], _T],
        /,
        *,
        attempts: int = 3,
        retry_on: tuple[type[Exception], ...] = (ConnectionError,),
        hedge: float | None = None,
        **options: Unpack[Options],
    ) -> _T:
        """Return ``fn(instance)``; when that cannot connect, try again with another instance.

        Args:
            fn: what to do with an instance. It may run more than once: pass exceptions in *retry_on* that
                leave no doubt that nothing was done, or make it something that may be done twice.
            attempts: how many instances to try at most.
            retry_on: exceptions of *fn* after which another instance is tried. How often is limited to a
                fifth of all calls (and one a second), so that an overload does not feed itself.
            hedge: seconds after which another instance is tried besides, if the one before has not answered;
                the first answer counts. *fn* runs in threads then, and a slow one goes on unheard.
            options: those of ``lookup``.

        Raises:
            Exception: what *fn* raised last; its note says which instances were tried.
            LookupFailed, RegistryUnavailable, RegistryError: as ``lookup``, before anything was tried.
            ConfigurationError: *attempts* is below 1.
        """
        trial = Trial(self._tally(name), attempts, options)
        if hedge is not None:
            return self._hedged(name, fn, trial, retry_on, hedge)
        while (instance := self._next(name, trial)) is not None:
            try:
                with self._lend(instance):
                    return fn(instance)
            except retry_on as exc:
                if not trial.again(exc):
                    raise
        raise trial.failure()

    def watch(
        self, name: str, /, *, tags: Sequence[str] = _NO_TAGS, dc: str | None = None, healthy: bool = True
    ) -> Watch:
        """Return the live set of instances of *name*: iterate over it, or give it a callback.

        It ends when it is closed, or this client is. One data centre is watched: there is no failover.
        """
        query = ServiceQuery(service_name(name), dc or self.config.dc)
        with self._lock:  # so that ``close`` in another thread finds it, or comes first
            watch = Watch(self._running_engine(), query, _folded(tags), healthy)
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

        An unreachable registry is waited for too. One data centre is asked: there is no failover. A *timeout*
        of 0 looks once; a first answer is waited for a second in any case.

        Raises:
            ConfigurationError: *timeout* is no number.
            ServiceNotFound, NoHealthyInstances: not within *timeout* seconds; the reason is the one that
                ``lookup`` gives, or how many there were.
            RegistryUnavailable: the registry could not be asked in that time.
            RegistryError: it refuses the question.
        """
        awaited = Awaited(name, min_instances, timeout, time.monotonic)
        with self.watch(name, tags=tags, dc=dc) as changes:
            while not awaited.over:
                try:
                    found = changes.next(awaited.left)
                except RegistryUnavailable as exc:  # down, or nothing has changed in the time that was left
                    awaited.missed(exc)
                except StopIteration:
                    raise awaited.closed() from None
                else:
                    if awaited.enough(found):
                        return found
        if awaited.found_none:
            self.lookup(name, tags=tags, dc=dc)  # raises the error that says why there is none
        raise awaited.failure()

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

        For processes that are no container. See ``Heartbeat`` for the arguments. Without an agent it is
        tried on in the background, with one warning.

        Raises:
            InvalidName, ConfigurationError: an argument is not possible.
            RegistryError: the agent refused the registration.
        """
        heartbeat = Heartbeat(
            self._agent,
            name,
            port=port,
            address=address,
            tags=_several(tags),
            meta=meta,
            ttl=ttl,
            service_id=service_id,
            check_http=check_http,
            share=sources.shared_directory(self.config),
        )
        heartbeat.start()
        with self._lock:
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
            heartbeats = list(self._heartbeats)
        for heartbeat in heartbeats:  # first, as they use the registry to the end
            heartbeat.close()
        with self._lock:
            engine, self._engine = self._engine, None
            opened = [self._registry, self._catalogue]
            self._registry = self._catalogue = self._given
            self._services.clear()
            self._warm.clear()
            self._tallies.clear()
            watches = list(self._watches)
        for watch in watches:
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

    # --- decisions; see Steps

    def _wish(
        self,
        tags: Sequence[str] = _NO_TAGS,
        meta: Mapping[str, str] | None = None,
        dc: str | None = None,
        near: str | None = None,
        zone: str | None = None,
        failover: Sequence[str] = (),
        strategy: str | balance.Strategy | None = None,
        key: str | None = None,
        exclude: Collection[Instance] | Instance = (),
        timeout: float | None = None,
        default: Instance | None = None,
    ) -> Wish:
        """Return what ``Options`` ask for; the last two are the business of who carries that out."""
        if strategy is None:
            strategy = "first" if near else "ring_hash" if key is not None else self.config.strategy
        return Wish(
            _folded(tags),
            tuple(sorted(meta.items())) if meta else (),
            zone or self.config.zone,
            (dc, *(_several(failover) or self.config.failover)),
            near,
            strategy,
            key,
            excluded(exclude),
        )

    def _choose(self, name: str, wish: Wish) -> Steps[Instance]:
        asked: list[Service] = []
        failure: RegistryUnavailable | RegistryError | None = None
        for dc in wish.dcs:
            try:
                service = yield from self._service(name, dc, wish.near)
            except (RegistryUnavailable, RegistryError) as exc:
                failure = failure or exc
                continue
            service.tally.expire()
            instance = service.pick(wish)
            if instance is not None:
                return instance
            asked.append(service)
        if failure is not None:
            raise failure
        raise (yield from self._nothing(asked, wish))

    def _explain(self, name: str, wish: Wish) -> Steps[Explanation]:
        candidates: list[Candidate] = []
        attempts: list[Attempt] = []
        failure: RegistryUnavailable | RegistryError | None = None
        for dc in wish.dcs:
            started = time.monotonic()
            try:
                service = yield from self._service(name, dc, wish.near)
            except (RegistryUnavailable, RegistryError) as exc:
                failure = failure or exc
                attempts += exc.attempts or [Attempt(self.where, time.monotonic() - started, str(exc))]
                continue
            service.tally.expire()
            candidates += service.candidates(wish)
            attempts += service.attempts(self.where)
            if any(candidate.why_not is None for candidate in candidates):
                break  # the next data centre is not asked
        if failure is not None and not candidates:
            raise failure
        strategy = wish.strategy if isinstance(wish.strategy, str) else type(wish.strategy).__name__
        return Explanation(service_name(name), strategy, tuple(candidates), tuple(attempts))

    def _all(
        self,
        name: str,
        tags: Sequence[str] = _NO_TAGS,
        meta: Mapping[str, str] | None = None,
        dc: str | None = None,
        near: str | None = None,
        healthy: bool = True,
    ) -> Steps[Snapshot]:
        service = yield from self._service(name, dc, near)
        snapshot = service.healthy if healthy else service.snapshot
        if tags or meta:
            wanted = _folded(tags)
            return snapshot.only(lambda instance: matches(instance, wanted, meta))
        return snapshot

    def _service(self, name: str, dc: str | None, near: str | None = None) -> Steps[Service]:
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

    def _names(self, dc: str | None) -> Steps[Mapping[ServiceName, tuple[str, ...]]]:
        known = yield NamesQuery(dc or self.config.dc)
        return cast("Mapping[ServiceName, tuple[str, ...]]", known.value)

    def _nothing(self, asked: Sequence[Service], wish: Wish) -> Steps[DiscoveryError]:
        name = asked[0].query.name
        everyone = [instance for service in asked for instance in service.snapshot]
        attempts = [attempt for service in asked for attempt in service.attempts(self.where)]
        unsure = any(service.snapshot.stale for service in asked)
        doubt = " (not confirmed: the registry cannot be asked)" if unsure else ""
        if not everyone:
            try:
                known: Mapping[ServiceName, Any] = yield from self._names(asked[0].query.dc)
            except DiscoveryError:
                known = {}
            # Not the name itself: an instance that has just come is in one answer before it is in another.
            close = close_names(name, [other for other in known if fold(other) != fold(name)])
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            return ServiceNotFound(
                f"no service is called {name!r} in the catalogue of {asked[0].where or self.where}"
                f"{doubt}{hint}",
                close=close,
                attempts=attempts,
            )
        failing = [reason for instance in everyone if (reason := wish.why_not(instance))]
        return NoHealthyInstances(
            f"none of the {len(everyone)} instances of {name!r} can be used{doubt}: {'; '.join(failing[:5])}"
            + ("; ..." if len(failing) > 5 else ""),
            failing=failing,
            attempts=attempts,
        )

    # --- carrying them out

    def _run(self, steps: Steps[_T], timeout: float | None) -> _T:
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

    def _follow(self, key: _Key, query: ServiceQuery, known: Known) -> Service:
        """Keep what is *known* of a service fresh from now on."""
        engine = self._running_engine()
        with self._lock:
            service = self._services.get(key)
            if service is None:
                service = Service(query, known, self._tally(query.name), self.config)
                dropped = functools.partial(self._dropped, key, service)
                # Subscribed before anybody can find it: one that nobody keeps fresh would answer for ever.
                engine.subscribe(query, service.changed, used=service.used, dropped=dropped)
                self._services[key] = service
        return service

    def _dropped(self, key: _Key, service: Service) -> None:
        with self._lock:
            if self._services.get(key) is service:
                del self._services[key]
            for spelling, other in list(self._warm.items()):
                if other is service:
                    del self._warm[spelling]
        service.retire()
        if not service.tally.services:
            self._tallies.pop(fold(service.query.name), None)

    def _lend(self, instance: Instance) -> Loan:
        return Loan(self._tally(instance.service), instance)

    def _next(self, name: str, trial: Trial) -> Instance | None:
        """Return the instance that *trial* tries next, None when all have been tried."""
        try:
            return trial.begin(self.lookup(name, **trial.options))
        except LookupFailed:
            if not trial.tried:
                raise
            return None

    def _hedged(
        self,
        name: str,
        fn: Callable[[Instance], _T],
        trial: Trial,
        retry_on: tuple[type[Exception], ...],
        hedge: float,
    ) -> _T:
        from concurrent import futures

        def attempt(instance: Instance) -> _T:
            with self._lend(instance):
                return fn(instance)

        threads = futures.ThreadPoolExecutor(trial.attempts, thread_name_prefix=f"call {name}")
        running: set[futures.Future[_T]] = set()
        another = hedging = True
        try:
            while True:
                instance = self._next(name, trial) if another else None
                if instance is not None:
                    running.add(threads.submit(attempt, instance))
                elif not running:
                    raise trial.failure()
                elif another:
                    hedging = False  # there is nobody to ask besides
                done, running = futures.wait(running, hedge if hedging else None, futures.FIRST_COMPLETED)
                if not done:
                    another = hedging = trial.hedge()
                    continue
                future = done.pop()
                running |= done  # one at a time; these are there at once
                failure = future.exception()
                if failure is None:
                    return future.result()
                if not isinstance(failure, retry_on):
                    raise failure
                another = trial.again(failure)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _tally(self, name: str) -> Tally:
        tally = self._tallies.get(fold(name))
        # setdefault: two threads that meet here get the same one
        return tally or self._tallies.setdefault(fold(name), Tally())

    def _agent(self) -> Backend:
        """Return the registry to write to; raises as ``sources.find``."""
        if self._registry is None:
            found = sources.find(self.config)  # without the lock: a silent agent takes its time
            with self._lock:
                if self._registry is None:
                    self._registry = found
        return self._registry

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


def _several(words: Sequence[str]) -> tuple[str, ...]:
    """Return *words* as a tuple. One string is one word: its letters would match nothing, silently."""
    return (words,) if isinstance(words, str) else tuple(words)


def _folded(tags: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(fold, _several(tags))) if tags else _NO_TAGS


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
    lookup: Final = _typed.lookup
    lookup_all: Final = _typed.lookup_all
    watch: Final = _typed.watch
    wait_for: Final = _typed.wait_for
    call: Final = _typed.call
    register: Final = _typed.register
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

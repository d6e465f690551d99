"""Keeps answers to catalogue questions fresh in the background: the heart of client and resolver.

    subscribe(query) ─> _Follower ── thread: blocking read, again and again ──> Known ──> callbacks
                                  └─ beyond ``max_watches``, and prepared queries, which cannot
                                     block: read by the poller, once a second

Laws:
- Reading never waits and takes no lock: ``Known`` is immutable and swapped whole.
- Callbacks run without any lock of the engine's: they may look up, subscribe, unsubscribe and close. Each
  subscriber is told in order, and never something older than what it has been told.
- Unreachable keeps what is known and says ``stale``; an authoritative empty answer is empty.
- One question, one reader, however many ask it.
- While the registry is down one follower of all tries to reach it (``_Gate``); the others wait for that
  one. A thousand names must not become a thousand connection attempts a second against an agent that
  is starting.
- An index that goes backwards (a restarted or restored server) starts the question anew from 0: waiting
  on the old one would miss every change until the new index passes it (Consul: "Blocking Queries").
- An answer from servers without a leader never replaces what is known: a server that has just started
  knows less than we do.
- After a fork the child has the answers, and neither threads nor subscriptions: each question resumes when
  it is next asked, and callbacks stay with the process that asked for them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeGuard

from discovery.backends import Catalogue, Reader
from discovery.config import Config
from discovery.errors import (
    Attempt,
    DiscoveryError,
    RegistryError,
    RegistryOverloaded,
    RegistryTimeout,
    RegistryUnavailable,
)
from discovery.model import PreparedQuery, Query, ServiceQuery, Source
from discovery.names import fold
from discovery.rota import Rota
from discovery.scout import WATCHED, Scout

__all__ = ["Engine", "Known", "Pending"]

log: Final = logging.getLogger("discovery")
log.addHandler(logging.NullHandler())  # an application that configures no logging hears nothing of us

READ_TIMEOUT: Final = 5.0
"""Seconds beyond what a blocking read may take in any case (wait + wait/16); a peer that is silent for
longer is gone, even if its TCP connection does not say so."""
LEADERLESS_PAUSE: Final = 0.8
"""Seconds between reads while servers have no leader: its return wakes no blocking read."""
POLL: Final = 1.0
"""Seconds between two reads of a question that has no watch of its own, where nobody sees its changes."""
MAX_POLLS: Final = 200
"""Such reads in a second: more would take a good part of a core here and one of the registry's, for ever.
With more questions, each is read less often."""
LOOK_AGAIN: Final = 60.0
"""Seconds between two reads of a polled service whose changes a scout sees: it may have been read from a
server that lags behind the one that the scout asked."""
SCOUT_FROM: Final = 16
"""Polled questions from which on a scout pays: it costs four blocking reads, and a read per node."""
POLLERS: Final = 4
"""Threads that poll. A registry on another host takes milliseconds for each read."""
BACKOFF_MIN: Final = 0.1
BACKOFF_MAX: Final = 0.8
"""Seconds between attempts to reach a registry. Only one request per process is made in this time, so
there is no herd to spread, and recovery is seen within a second."""
JOIN_TIMEOUT: Final = 5.0
"""Seconds that ``close`` waits for its threads in all; only one that resolves a host name takes so long."""
_BURST: Final = 16
_BURST_SECONDS: Final = 0.5
"""After 16 returns of one blocking read without news within half a second they are spaced out: a registry
that answers at once each time (a proxy that strips the index) must not take a core. News is not held up so: a
hundred instances that start together are each seen within milliseconds."""

_OUTAGE: Final = (RegistryUnavailable, RegistryOverloaded)
"""Errors that every other question would meet as well."""
_ELSEWHERE: Final = frozenset({"static", "dns"})
"""Sources that answer whether the registry does or not."""

Callback = Callable[["Known"], None]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known about one query."""

    query: Query
    value: Any = None
    """The shape that the query documents; None until the first success."""
    index: int = 0
    fetched_at: float = 0.0
    """Seconds on the monotonic clock of the last successful read."""
    stale: bool = False
    """True while the registry cannot be asked whether this is still so."""
    error: DiscoveryError | None = None
    """Why it is stale, or why there is no value."""
    source: Source = "http"
    where: str = ""
    """The address that it came from, where the catalogue has several."""
    elapsed: float = field(default=0.0, compare=False)
    """Seconds that it took to ask."""
    attempts: tuple[Attempt, ...] = ()
    """What was asked in vain before."""


class Engine:
    """Follows queries on one catalogue. Creating it does no I/O and starts no thread."""

    def __init__(self, catalogue: Catalogue, config: Config) -> None:
        self.catalogue = catalogue
        self.config = config
        self._followers: dict[Query, _Follower] = {}
        self._by_name: dict[str, list[_Follower]] = {}  # local services, by folded name
        self._lock = threading.Lock()  # of who follows what; never held while a callback runs
        self._threads: list[threading.Thread] = []  # of watches
        self._rota: Rota[_Follower] = Rota()
        self._pollers: dict[threading.Thread, Reader] = {}  # none: there is nothing to poll
        self._scout: Scout | None = None
        self.gate: _Gate = _Gate(self._rota.hurry)
        self._closed = False
        _engines.add(self)

    def get(self, query: Query) -> Known | None:
        """Return what is known about *query*, without waiting; a new query is followed from now on.

        Returns None while the first answer is on its way.

        Raises:
            RegistryUnavailable: the engine is closed.
        """
        follower = self._followers.get(query)
        if follower is None or not follower.running:
            follower = self._follow(query)
        follower.used = True
        known = follower.known
        return known if known.value is not None or known.error is not None else None

    def peek(self, query: Query) -> Known | None:
        """Return what is known about *query*; None when that is nothing. A new query is not followed."""
        follower = self._followers.get(query)
        return follower.known if follower is not None and follower.known.value is not None else None

    def fetch(self, query: Query, timeout: float) -> Known:
        """Return what is known about *query*, waiting up to *timeout* seconds for a first answer.

        The first one after a fork counts: what the parent knew may be hours old, and is returned only
        when the registry cannot be asked.

        Raises:
            RegistryTimeout: no answer in time.
            RegistryUnavailable, RegistryError: the first attempt failed, and nothing is known from before.
        """
        return self._follow(query).first(timeout)

    def ask(self, query: Query, wake: Callable[[], None]) -> Pending:
        """As ``fetch``, for who cannot block: *wake* is called when the answer is there.

        *wake* runs in a background thread, perhaps more than once, and must do no more than pass that on.
        """
        return Pending(self._follow(query), wake)

    def subscribe(
        self,
        query: Query,
        callback: Callback,
        *,
        used: Callable[[], bool] | None = None,
        dropped: Callable[[], None] | None = None,
        every: bool = False,
    ) -> Callable[[], None]:
        """Call *callback* with what is known about *query*, and on every change, in a background thread.

        What is known already it is told before this returns, in the caller's thread. A failure is a change
        too: a ``Known`` whose ``value`` is None and whose ``error`` is set says that nothing is known and
        why.

        Args:
            used: asked now and then whether anybody read what the callback was given since it was last
                asked. When it keeps saying no for ``config.idle`` seconds the subscription ends and
                *dropped* is called. None: the subscription lasts until it is ended.
            every: tell each new index, also when the value is the same.

        Returns:
            The function that ends the subscription; a call under way in another thread may still finish.

        Raises:
            RegistryUnavailable: the engine is closed.
        """
        subscription = _Subscription(callback, used, dropped, every=every)
        follower = self._follow(query, subscription)
        follower.greet(subscription)

        return functools.partial(self._unsubscribe, follower, subscription)

    def close(self) -> None:
        """Stop every follower and join its thread; idempotent."""
        with self._lock:
            self._closed = True
            for follower in self._followers.values():
                follower.stop()
            self._followers.clear()
            self._by_name.clear()
            for reader in self._pollers.values():
                reader.interrupt()
            threads = [*self._threads, *self._pollers]
            scout, self._scout = self._scout, None
        self._rota.end()
        self.gate.wake()
        if scout is not None:
            scout.close()
        deadline = time.monotonic() + JOIN_TIMEOUT
        for thread in threads:
            if thread is not threading.current_thread():  # a callback may close us
                thread.join(max(deadline - time.monotonic(), 0.0))
        if scout is not None:
            scout.join(max(deadline - time.monotonic(), 0.0))

    def hurry(self, follower: _Follower) -> None:
        """Let *follower*, which was kicked, be asked now."""
        self.gate.wake()
        self._rota.hurry((follower,))

    def _follow(self, query: Query, subscription: _Subscription | None = None) -> _Follower:
        with self._lock:
            if self._closed:
                raise RegistryUnavailable(f"this client of {self.catalogue.where} is closed")
            follower = self._followers.get(query)
            if follower is None:
                follower = self._followers[query] = _Follower(self, query)
                if _is_local_service(query):
                    self._by_name.setdefault(fold(query.name), []).append(follower)
            if subscription is None:
                follower.used = True  # under the lock, so that it cannot be dropped in between
            else:
                follower.subscriptions.append(subscription)
            if not follower.running and not self._start_watching(follower):
                follower.running = True
                self._rota.add(follower, 0.0)
                self._start_polling()
        return follower

    def _start_watching(self, follower: _Follower) -> bool:
        """Give *follower* a thread of its own where it can block and the cap allows it. The lock is held."""
        if isinstance(follower.query, PreparedQuery):
            return False
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        # What tells of changes of all others has a watch in any case.
        if len(self._threads) >= self.config.max_watches and follower.query not in WATCHED:
            return False
        self._threads.append(follower.start_watching())
        return True

    def _start_polling(self) -> None:
        """Have pollers for a follower that has just been added, one for every few. The lock is held."""
        if len(self._pollers) < min(POLLERS, 1 + len(self._rota) // SCOUT_FROM):
            reader = self.catalogue.connect()
            thread = threading.Thread(target=self._poll, args=(reader,), name="discovery-poller", daemon=True)
            self._pollers[thread] = reader
            thread.start()

    def _unsubscribe(self, follower: _Follower, subscription: _Subscription) -> None:
        subscription.ended = True
        with self._lock:
            if subscription not in follower.subscriptions:
                return
            follower.subscriptions.remove(subscription)
            # Somebody who reads it with get() keeps it until it is idle; else its watch is free at once.
            if follower.subscriptions or follower.read_lately(time.monotonic(), self.config.idle):
                return
            self._remove(follower)
        self.gate.wake()  # it may wait there
        self._see_to_scout()

    def _forget(self, follower: _Follower) -> bool:
        """Drop *follower* unless somebody began to use it meanwhile; True when it is gone."""
        with self._lock:
            if follower.wanted(time.monotonic(), self.config.idle):
                return False
            self._remove(follower)
        for subscription in follower.subscriptions:
            if subscription.dropped is not None:
                subscription.dropped()
        return True

    def _remove(self, follower: _Follower) -> None:
        """Follow it no longer. The lock is held."""
        if self._followers.get(follower.query) is follower:
            del self._followers[follower.query]
            if _is_local_service(follower.query):
                name = fold(follower.query.name)
                self._by_name[name].remove(follower)
                if not self._by_name[name]:
                    del self._by_name[name]
        self._rota.drop(follower)
        follower.stop()

    # --- questions beyond the cap

    def _poll(self, reader: Reader) -> None:
        try:
            while (follower := self._next_polled()) is not None:
                self._see_to_scout()
                if self._poll_one(follower, reader):
                    self._rota.add(follower, time.monotonic() + self._pause(follower))
                else:
                    self._rota.drop(follower)
        finally:
            self._see_to_scout()
            self.gate.leave()
            reader.close()

    def _next_polled(self) -> _Follower | None:
        """Wait for the next that is to be asked; None: this poller has ended, there is nothing for it."""
        while True:
            follower = self._rota.next()
            if follower is not None:
                return follower
            with self._lock:
                # Looked at under the lock: whoever adds one after this starts a poller.
                if not self._rota.waiting:
                    self._pollers.pop(threading.current_thread(), None)
                    return None

    def _poll_one(self, follower: _Follower, reader: Reader) -> bool:
        """Ask, or say why not; False when *follower* is not to be polled any more."""
        if not follower.wanted(time.monotonic(), self.config.idle) and self._forget(follower):
            return False
        with self._lock:
            if not follower.running or self._start_watching(follower):
                return False  # dropped, or a watch has become free for it
        if not follower.gated or self.gate.may_ask(follower.kicked):
            self._rota.heed(follower)
            follower.read_once(reader, blocking=False)
        else:
            follower.doubt(self.gate.error)
        return True

    def _pause(self, follower: _Follower) -> float:
        """Return how many seconds to leave *follower* alone, unless somebody is in a hurry."""
        known, scout = follower.known, self._scout
        sure = known.value is not None and not known.stale and known.error is None
        if sure and scout is not None and scout.sees and _is_local_service(follower.query):
            return min(LOOK_AGAIN, self.config.idle)
        return max(POLL, len(self._rota) / MAX_POLLS)

    def _see_to_scout(self) -> None:
        """Have a scout while there is much to poll. No lock is held."""
        ended: Scout | None = None
        begun: Scout | None = None
        with self._lock:
            polled = len(self._rota)
            if self._scout is None and polled > SCOUT_FROM and not self._closed:
                begun = self._scout = Scout(self.subscribe, self.catalogue.connect(), self._changed)
            elif self._scout is not None and polled <= SCOUT_FROM // 2:
                ended, self._scout = self._scout, None
        if ended is not None:
            ended.close()
        if begun is not None:
            with contextlib.suppress(RegistryUnavailable):  # closed meanwhile, and the scout with it
                begun.start()

    def _changed(self, names: Collection[str]) -> None:
        """Have the services of these folded names asked for anew."""
        with self._lock:
            followers = [one for name in names for one in self._by_name.get(name, ())]
        self._rota.hurry(followers)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._threads = []
        self._rota = Rota()
        self._pollers = {}
        self._scout = None
        self.gate = _Gate(self._rota.hurry)
        for follower in self._followers.values():
            follower.after_fork()


def _is_local_service(query: Query) -> TypeGuard[ServiceQuery]:
    """Whether a scout sees changes of what *query* asks for."""
    return isinstance(query, ServiceQuery) and query.dc is None


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Pending:
    """A ``fetch`` under way. Ends with ``close``, answered or not."""

    def __init__(self, follower: _Follower, wake: Callable[[], None]) -> None:
        self._follower = follower
        self._wake = wake
        self._ticket = follower.ask(wake)

    @property
    def answered(self) -> bool:
        """Whether ``result`` is final; False while there is something to wait for."""
        return self._follower.answered(self._ticket)

    def result(self, waited: float) -> Known:
        """Return or raise what ``fetch`` does after having *waited* so many seconds."""
        return self._follower.outcome(self._ticket, waited)

    def close(self) -> None:
        """Be woken no more."""
        self._follower.leave(self._wake)


class _Subscription:
    """One callback, told in order from whichever thread has news."""

    __slots__ = ("_callback", "_lock", "_told", "dropped", "ended", "every", "used")

    def __init__(
        self,
        callback: Callback,
        used: Callable[[], bool] | None,
        dropped: Callable[[], None] | None,
        *,
        every: bool,
    ) -> None:
        self.every: bool = every
        self.used: Callable[[], bool] | None = used
        self.dropped: Callable[[], None] | None = dropped
        self.ended: bool = False
        self._callback = callback
        self._told = 0  # the version of what it was told last
        self._lock = threading.Lock()

    def tell(self, known: Known, version: int) -> None:
        with self._lock:
            if self.ended or version <= self._told:
                return
            self._told = version
            try:
                self._callback(known)
            except Exception:  # a subscriber's fault is its own: the others, and this thread, go on
                log.exception("a subscriber of %s failed", known.query)


class _Flag:
    """A ``threading.Event`` for one thread that waits, made when it first does.

    Each of thousands of questions has two, and only those with a thread of their own ever wait.
    """

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: threading.Event | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        # In this order: who begins to wait makes the event before it looks at the flag.
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        self._is_set = False
        if self._event is not None:
            self._event.clear()

    def wait(self, timeout: float) -> None:
        if self._event is None:
            self._event = threading.Event()
        if not self._is_set:
            self._event.wait(timeout)


class _Follower:
    """One query: what is known, who wants it, and the thread that keeps it fresh (or none: polled)."""

    # There may be ten thousand.
    __slots__ = (
        "_attempts",
        "_inherited",
        "_lock",
        "_read_at",
        "_reader",
        "_reading",
        "_stopping",
        "_version",
        "_waking",
        "_wanted_at",
        "engine",
        "kicked",
        "known",
        "query",
        "running",
        "subscriptions",
        "used",
    )

    def __init__(self, engine: Engine, query: Query) -> None:
        self.engine: Engine = engine
        self.query: Query = query
        self.known: Known = Known(query)
        self.running: bool = False
        self.used: bool = False
        self.subscriptions: list[_Subscription] = []
        self._reader: Reader | None = None
        self._read_at: float | None = None
        self._wanted_at = time.monotonic()
        self._version = 0  # of what is known
        self._attempts = 0  # reads that ended, well or not
        self._reading = False  # whoever asks now will have what comes of it
        self._inherited = False  # what is known comes from before a fork, and nobody asked since
        # A condition would be simpler to wait on, and is ten times as large.
        self._lock = threading.RLock()
        self._waking: list[Callable[[], None]] = []  # of those who wait
        self.kicked: _Flag = _Flag()
        self._stopping = _Flag()

    # --- who wants it

    def greet(self, subscription: _Subscription) -> None:
        with self._lock:
            known, version = self.known, self._version
        if version:
            subscription.tell(known, version)

    def read_lately(self, now: float, idle: float) -> bool:
        """Say whether somebody called ``get`` or ``fetch`` within *idle* seconds."""
        if self.used:
            self.used, self._read_at = False, now
        return self._read_at is not None and now - self._read_at < idle

    def wanted(self, now: float, idle: float) -> bool:
        """Say whether somebody read this within *idle* seconds, or has a subscriber that does."""
        for subscription in list(self.subscriptions):
            if subscription.used is None or subscription.used():
                self._wanted_at = now
        return self.read_lately(now, idle) or now - self._wanted_at < idle

    def ask(self, wake: Callable[[], None]) -> int:
        """Have the query asked at once where nothing is known; returns the ticket for what comes of it.

        *wake* is called in a background thread when it is worth to look whether that is ``answered``.
        """
        with self._lock:
            if self.known.value is None and not self._reading:
                self.kicked.set()
                self.engine.hurry(self)
            self._waking.append(wake)
            return self._attempts

    def leave(self, wake: Callable[[], None]) -> None:
        """Call *wake* no more."""
        with self._lock:
            if wake in self._waking:
                self._waking.remove(wake)

    def answered(self, ticket: int) -> bool:
        return (self.known.value is not None and not self._inherited) or self._attempts != ticket

    def outcome(self, ticket: int, waited: float) -> Known:
        """Return what is known, or raise why nothing is after *waited* seconds."""
        with self._lock:
            known, failed = self.known, self._attempts != ticket
        if known.value is not None:
            return known
        where = self.engine.catalogue.where
        if failed and known.error is not None:
            # A copy: one error raised in several threads would collect the frames of all of them.
            raise copy(known.error) from known.error.__cause__
        if self._stopping.is_set():
            raise RegistryUnavailable(f"this client of {where} is closed")
        problem = f"did not answer within {waited:.2g} s"
        tried: Callable[[Query], Sequence[Attempt]] | None = getattr(self.engine.catalogue, "tried", None)
        attempts = tried(self.query) if tried is not None else ()
        raise RegistryTimeout(f"{where} {problem}", attempts=attempts or [Attempt(where, waited, problem)])

    def first(self, timeout: float) -> Known:
        woken = threading.Event()
        ticket = self.ask(woken.set)
        deadline = time.monotonic() + timeout
        try:
            while not self.answered(ticket) and (left := deadline - time.monotonic()) > 0:
                woken.wait(min(left, threading.TIMEOUT_MAX))
                woken.clear()
        finally:
            self.leave(woken.set)
        return self.outcome(ticket, timeout)

    # --- keeping it fresh

    def start_watching(self) -> threading.Thread:
        self._reader = reader = self.engine.catalogue.connect()
        thread = threading.Thread(
            target=self._watch, args=(reader,), name=f"discovery-watch {self.query}", daemon=True
        )
        thread.start()
        self.running = True
        return thread

    def stop(self) -> None:
        self.running = False
        self._stopping.set()
        self.kicked.set()
        if self._reader is not None:
            self._reader.interrupt()
        with self._lock:
            self._attempts += 1  # nobody will answer those who wait
            waking = tuple(self._waking)
        for wake in waking:
            wake()

    def after_fork(self) -> None:
        self.running = False
        self._reader = None
        self._inherited = self.known.value is not None
        if self._inherited:
            self.known = replace(self.known, stale=True)
        self.subscriptions = []
        self._lock = threading.RLock()
        self._waking = []
        self._reading = False
        self._stopping = _Flag()
        self.kicked = _Flag()

    @property
    def gated(self) -> bool:
        """Say whether it is the registry that has to answer: nothing else does at the moment."""
        known = self.known
        return known.value is None or known.stale or known.source not in _ELSEWHERE

    def doubt(self, why: DiscoveryError | None) -> None:
        """Say *why* what is known cannot be confirmed, when another question has found that out."""
        if why is not None and self.known.error is None:
            self._publish(replace(self.known, stale=self.known.value is not None, error=why))

    def _watch(self, reader: Reader) -> None:
        gate, idle = self.engine.gate, self.engine.config.idle
        returns: deque[float] = deque(maxlen=_BURST)
        try:
            while not self._stopping.is_set():
                if self.gated and not gate.may_ask(self.kicked):
                    self.doubt(gate.error)
                    gate.wait()
                    continue
                before, spent = self.known.value, time.thread_time()
                answered = self.read_once(reader, blocking=True)
                # The registry is there, or it was not even asked: only this question is at fault.
                refused = not answered and not isinstance(self.known.error, _OUTAGE)
                if gate.error is not None and self.gated and not refused:
                    continue
                now = time.monotonic()
                if not self.wanted(now, idle) and self.engine._forget(self):
                    return
                changed = self.known.value is not before
                if not changed:
                    returns.append(now)
                if refused:
                    self.kicked.wait(BACKOFF_MAX)
                elif self.known.stale:
                    self._stopping.wait(LEADERLESS_PAUSE)
                elif changed:
                    # As long as it took to take in: a service that changes without end takes half a core.
                    self._stopping.wait(time.thread_time() - spent)
                elif len(returns) == _BURST and now - returns[0] < _BURST_SECONDS:
                    self._stopping.wait(_BURST_SECONDS / _BURST)
        finally:
            gate.leave()
            reader.close()

    def read_once(self, reader: Reader, *, blocking: bool) -> bool:
        """Read once, publish what came of it, and say whether it went well."""
        engine, known = self.engine, self.known
        with self._lock:
            self.kicked.clear()
            self._reading = True
        # A stale answer is asked for anew without an index: a blocking read would wait for a change
        # before it told us that the registry is back.
        index = known.index if blocking and not known.stale else 0
        started = time.monotonic()
        try:
            reply = reader.read(self.query, index=index, wait=engine.config.wait, timeout=READ_TIMEOUT)
        except DiscoveryError as exc:
            self._failed(exc)
            return False
        except Exception as exc:  # a fault of ours in one answer must not end this thread
            log.exception("reading %s from %s failed", self.query, engine.catalogue.where)
            self._failed(DiscoveryError(f"reading {self.query} failed: {exc!r}"))
            return False
        elapsed = known.elapsed if index else time.monotonic() - started  # without the wait for a change
        if reply.error is not None:
            self._settle(reply.error)  # it was remembered: nobody has answered
        elif reply.source in _ELSEWHERE:
            engine.gate.leave()  # that says nothing about the registry
        else:
            engine.gate.succeeded(engine.catalogue.where)
        error = reply.error
        if not reply.known_leader:
            error = RegistryUnavailable(f"the servers behind {engine.catalogue.where} have no leader")
        keep = known.value is not None and (error is not None or reply.value == known.value)
        # 1. Backwards: start anew.  2. Zero: Consul forbids to wait on it, 1 is the floor.
        index = 0 if reply.index < index else max(reply.index, 1)
        value = known.value if keep else reply.value
        if keep and error is not None:
            now_known = replace(known, index=index, stale=True, error=error)
        else:
            now_known = Known(
                self.query,
                value,
                index,
                time.monotonic(),
                stale=error is not None,
                error=error,
                source=reply.source,
                where=reply.where,
                elapsed=elapsed,
                attempts=reply.attempts,
            )
        self._publish(now_known, attempt=True)
        return True

    def _failed(self, exc: DiscoveryError) -> None:
        if self._stopping.is_set():
            return  # interrupted: that says nothing about the registry
        self._settle(exc)
        self._publish(replace(self.known, stale=self.known.value is not None, error=exc), attempt=True)

    def _settle(self, exc: DiscoveryError) -> None:
        gate = self.engine.gate
        if isinstance(exc, _OUTAGE):
            gate.failed(exc)
        elif isinstance(exc, RegistryError):
            gate.succeeded(self.engine.catalogue.where)  # a refusal is an answer too
        else:
            gate.leave()  # a wrong setting, or a fault of ours

    def _publish(self, known: Known, *, attempt: bool = False) -> None:
        with self._lock:
            before, self.known = self.known, known
            self._version += 1
            version, subscriptions, waking = self._version, tuple(self.subscriptions), tuple(self._waking)
            if attempt:
                self._reading = False
                self._attempts += 1
                self._inherited = False
        changed = known.value is not before.value or known.stale != before.stale
        changed = changed or type(known.error) is not type(before.error)
        moved = known.index != before.index
        for subscription in subscriptions:
            if changed or (moved and subscription.every):
                subscription.tell(known, version)
        for wake in waking:
            wake()


class _Gate:
    """Closed while the registry is down: one thread at a time may try it, the others wait for its success."""

    def __init__(self, turned: Callable[[], None]) -> None:
        """*turned*: called when it has closed or opened."""
        self._turned = turned
        self.error: DiscoveryError | None = None
        """Why it is closed; None while it is open."""
        self._condition = threading.Condition()
        self._prober: int | None = None  # identity of the thread that is trying
        self._delay = BACKOFF_MIN
        self._next_try = 0.0

    def may_ask(self, kicked: _Flag) -> bool:
        """Say whether the calling thread may ask the registry now; somebody who waits may always."""
        if self.error is None or kicked.is_set():
            return True
        with self._condition:
            if self._prober is None and time.monotonic() >= self._next_try:
                self._prober = threading.get_ident()
            return self._prober == threading.get_ident()

    def wait(self) -> None:
        """Wait until it may be worth to call ``may_ask`` again."""
        with self._condition:
            if self.error is None:
                return
            # While somebody tries, only the outcome is of interest, and it wakes us.
            left = self._next_try - time.monotonic() if self._prober is None else BACKOFF_MAX
            if left > 0:
                self._condition.wait(left)

    def failed(self, exc: DiscoveryError) -> None:
        with self._condition:
            turned = self.error is None
            if turned:
                self._delay = BACKOFF_MIN
                log.warning("%s; trying again until it answers", exc)
            elif self._prober != threading.get_ident():
                return  # one outage breaks every blocking read at once: that is one failure, not sixty-four
            self.error = exc
            self._prober = None
            # Jitter, so that the processes of one host do not come back in step.
            self._next_try = time.monotonic() + self._delay * random.uniform(0.5, 1.0)
            self._delay = min(self._delay * 2, BACKOFF_MAX)
            self._condition.notify_all()
        if turned:
            self._turned()

    def succeeded(self, where: str) -> None:
        if self.error is None:  # read without the lock: this runs after every read
            return
        with self._condition:
            turned = self.error is not None
            if turned:
                self.error = None
                self._prober = None
                log.warning("%s answers again", where)
                self._condition.notify_all()
        if turned:
            self._turned()

    def leave(self) -> None:
        """The calling thread ends: when it was the one to try, another shall."""
        with self._condition:
            if self._prober == threading.get_ident():
                self._prober = None
                self._condition.notify_all()

    def wake(self) -> None:
        """Wake the waiting, so that they look again whether they may stop or try."""
        with self._condition:
            self._condition.notify_all()

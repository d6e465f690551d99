"""Watching one service: its instances now, and every change of them.

Laws:
- A reader gets the newest snapshot, compared with the one that it got before; what lies between is
  skipped.
- A callback runs in a background thread, in order, and may do anything.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, cast

from discovery.engine import Engine, Known
from discovery.errors import (
    ConfigurationError,
    DiscoveryError,
    NoHealthyInstances,
    RegistryTimeout,
    RegistryUnavailable,
)
from discovery.model import Instance, ServiceQuery, Snapshot
from discovery.names import fold

__all__ = ["Awaited", "Watch", "compared", "is_usable", "matches", "snapshot_of"]


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
        self.wake: Callable[[], None] | None = None
        """Called in a background thread whenever it may be worth to look at ``has_news``."""
        self._ends: set[Callable[[], None]] = set()  # of the subscriptions
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
            if not self._condition.wait_for(self.has_news, patience):
                raise RegistryTimeout(f"{self._query.name!r} did not change in the time given")
            if self._closed:
                raise StopIteration
            if self._latest is not None:
                self._given, self._latest = compared(self._latest, self._given), None
                return self._given
            error, self._error = self._error, None
            raise cast(DiscoveryError, error)

    def has_news(self) -> bool:
        """Say whether ``next`` has something to return or raise without waiting."""
        return self._closed or self._latest is not None or self._error is not None

    @property
    def name(self) -> str:
        """The service that is watched."""
        return self._query.name

    @property
    def closed(self) -> bool:
        """Whether it has ended: by ``close``, its client's too."""
        return self._closed

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
                    given = compared(snapshot, given)
                    callback(given)

        if self._closed:
            return lambda: None
        end = self._engine.subscribe(self._query, changed)
        self._ends.add(end)

        def unsubscribe() -> None:
            end()
            self._ends.discard(end)

        if self.closed:  # by another thread, which may have come too early to end this one
            unsubscribe()
        return unsubscribe

    def close(self) -> None:
        """End the watch; a reader that waits gets StopIteration. Idempotent."""
        if os.getpid() != self._pid:
            self._condition = threading.Condition()  # a thread of the parent may have held the old one
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._wake()
        for end in tuple(self._ends):
            end()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._condition = threading.Condition()
        if not self._closed:
            self._ends.add(self._engine.subscribe(self._query, self._changed))

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
        self._wake()

    def _wake(self) -> None:
        if self.wake is not None:
            self.wake()

    def _snapshot(self, known: Known) -> Snapshot:
        def wanted(instance: Instance) -> bool:
            return (not self._healthy or is_usable(instance)) and matches(instance, self._tags, None)

        return snapshot_of(self._query, known).only(wanted)


class Awaited:
    """A ``wait_for``: when it has seen enough, and what to say when it has not.

    Raises:
        ConfigurationError: *timeout* is no number.
    """

    FIRST: Final = 1.0
    """Seconds for a registry that has said nothing yet, however short the timeout: 0 means to look once, and
    a registry that is well needs a moment to answer. As much as a lookup has."""

    def __init__(self, name: str, count: int, timeout: float, clock: Callable[[], float]) -> None:
        if math.isnan(timeout):
            raise ConfigurationError(f"timeout={timeout!r} for {name!r} is not possible: give seconds")
        timeout = max(timeout, 0.0)
        self._wanted = f"waited {timeout:g} s for {count} healthy instance(s) of {name!r}"
        self._count = count
        self._clock = clock
        self._deadline = clock() + timeout
        self._first = clock() + max(timeout, self.FIRST)
        self._heard = False  # whether there was an answer, a failure, or too long a silence
        self._found: Snapshot | None = None
        self._missed: RegistryUnavailable | None = None

    @property
    def left(self) -> float:
        """Seconds to wait for the next snapshot."""
        return max((self._deadline if self._heard else self._first) - self._clock(), 0.0)

    @property
    def over(self) -> bool:
        """Whether time is up. What is known at once is looked at even when there is no time at all."""
        return self._heard and not self.left

    @property
    def found_none(self) -> bool:
        """Whether the registry has answered that there is none."""
        return self._found is not None and not self._found

    def enough(self, found: Snapshot) -> bool:
        self._heard, self._found = True, found
        return len(found) >= self._count

    def missed(self, exc: RegistryUnavailable) -> None:
        """The registry could not be asked, or nothing has changed in the time that was left."""
        if self.left or not isinstance(exc, RegistryTimeout):  # that the time is over is no reason
            self._missed = exc
        self._heard = True

    def closed(self) -> DiscoveryError:
        return RegistryUnavailable(f"{self._wanted}, and this client was closed")

    def failure(self) -> DiscoveryError:
        if self._found is not None:
            return NoHealthyInstances(f"{self._wanted}, and found {len(self._found)}")
        if self._missed is None:
            return RegistryTimeout(f"{self._wanted}, and the registry has not answered")
        error = RegistryTimeout(f"{self._wanted}, and the registry could not be asked: {self._missed}")
        error.__cause__ = self._missed
        return error


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


def compared(snapshot: Snapshot, before: Snapshot | None) -> Snapshot:
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


def is_usable(instance: Instance) -> bool:
    return instance.status != "critical"


def matches(instance: Instance, tags: Sequence[str], meta: Mapping[str, str] | None) -> bool:
    """Say whether *instance* has all of *tags*, which are folded, and these values of *meta*.

    Consul ignores the case of tags, and a tag in a host name comes in lower case; keys and values of meta
    it does not.
    """
    entry = instance.entry
    if tags:
        has = set(map(fold, entry.tags))
        if any(tag not in has for tag in tags):
            return False
    return not meta or all(entry.meta.get(key) == value for key, value in meta.items())

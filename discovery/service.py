"""One service as the client keeps it: who may be picked, by which strategy, and what calls have taught.

    snapshot ── healthy ── view (tags, meta, zone) ── usable (not ejected) ── minus exclude ──> strategy
                   └─ live: what the warm path takes turns on, while nobody is ejected

Laws:
- Built in the thread that follows the service, read by every other without a lock.
- What calls have taught belongs to a service's name, whichever data centre or filter they came through.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

from discovery import balance
from discovery.changes import compared, is_usable, matches, snapshot_of
from discovery.config import Config
from discovery.engine import Known
from discovery.errors import Attempt, ConfigurationError
from discovery.model import Instance, ServiceName, ServiceQuery, Snapshot

__all__ = ["Candidate", "Explanation", "Loan", "Options", "Service", "Tally", "Trial", "Wish", "excluded"]

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
    exclude: Collection[Instance] | Instance
    timeout: float | None
    default: Instance | None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a lookup asks for."""

    tags: tuple[str, ...]
    """Folded: ``Blue`` and ``blue`` are one filter."""
    meta: tuple[tuple[str, str], ...]
    zone: str | None
    dcs: tuple[str | None, ...]
    near: str | None
    strategy: str | balance.Strategy
    key: str | None
    exclude: Collection[Instance]

    def matches(self, instance: Instance) -> bool:
        return matches(instance, self.tags, dict(self.meta))

    def why_not(self, instance: Instance) -> str | None:
        """Return why *instance* cannot be returned, as ``<id> <reason>``."""
        if not is_usable(instance):
            return f"{instance.id} fails {_failing_check(instance)}"
        if not self.matches(instance):
            if instance.source == "dns":
                return f"{instance.id} is known from DNS, which tells no tags and no meta"
            return f"{instance.id} has tags {list(instance.tags)} and meta {dict(instance.meta)}"
        if instance in self.exclude:
            return f"{instance.id} is excluded"
        return None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance, and whether a lookup may return it."""

    instance: Instance
    why_not: str | None
    """None: it may."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a lookup comes to what it returns."""

    service: ServiceName
    strategy: str
    """The name of what chooses among those that may be returned."""
    candidates: tuple[Candidate, ...]
    attempts: tuple[Attempt, ...]
    """Who was asked, in order, and what came of it."""


class Tally:
    """What calls have told about one service, in whichever data centre, and how often it may be retried."""

    def __init__(self) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.services: list[Service] = []
        self.stats: balance.Stats = balance.Stats(time.monotonic)
        self.budget: balance.RetryBudget = balance.RetryBudget(time.monotonic)

    def report(self, instance: Instance, *, ok: bool, latency: float | None) -> None:
        """Take in how a call to *instance* went; *latency* in seconds, when known."""
        with self.lock:
            if self.stats.report(instance, ok=ok, latency=latency):
                self._refresh()

    def expire(self) -> None:
        """Take back in whose ejection is over."""
        if self.stats.ejected:
            with self.lock:
                if self.stats.expire():
                    self._refresh()

    def _refresh(self) -> None:
        for service in self.services:
            service.refresh()

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


class Service:
    """What the client keeps of one name: ready to pick from, rebuilt in the watching thread."""

    def __init__(self, query: ServiceQuery, known: Known, tally: Tally, config: Config) -> None:
        self.query = query
        self.tally = tally
        self.was_used: bool = True
        self.live: Sequence[Instance] = ()
        """What the warm path takes turns on; empty where it takes more than a turn."""
        self.next: Callable[[], int] = itertools.count(random.randrange(1 << 16)).__next__
        self.snapshot: Snapshot = Snapshot(query.name)
        self.healthy: Snapshot = self.snapshot
        self.where: str = ""
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
        snapshot = compared(snapshot_of(self.query, known), self.snapshot)
        healthy = compared(snapshot.only(is_usable), self.healthy)
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

    def pick(self, wish: Wish) -> Instance | None:
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

    def candidates(self, wish: Wish) -> Iterator[Candidate]:
        """Say of every instance whether *wish* may get it, and why not."""
        view, now = self._view(wish), time.monotonic()
        for instance in self.snapshot:
            why_not = wish.why_not(instance)
            if why_not is None and instance not in (view.matching or ()):
                why_not = f"{instance.id} is in zone {instance.zone!r}, and there are some in {wish.zone!r}"
            elif why_not is None and instance not in view.usable:
                left = self.tally.stats.ejected.get(instance, now) - now
                why_not = f"{instance.id} failed again and again, and is left out for another {left:.0f} s"
            yield Candidate(instance, why_not)

    def _view(self, wish: Wish) -> _View:
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


class Loan:
    """One call to an instance: counted while it lasts, judged by how it ends."""

    __slots__ = ("_began_at", "_instance", "_tally", "ok")

    def __init__(self, tally: Tally, instance: Instance) -> None:
        self._tally = tally
        self._instance = instance
        self._began_at = 0.0
        self.ok: bool = True
        """False: it failed, although no exception says so."""

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
            self._tally.report(self._instance, ok=kind is None and self.ok, latency=latency)


class Trial:
    """One ``call``: which instances have been tried, and whether another one may be.

    Raises:
        ConfigurationError: *attempts* is below 1.
    """

    def __init__(self, tally: Tally, attempts: int, options: Options) -> None:
        if attempts < 1:
            raise ConfigurationError(f"attempts={attempts!r} is not possible: give at least 1")
        self._tally = tally
        self.attempts = attempts
        self.tried: list[Instance] = []
        self._given = tuple(excluded(options.get("exclude", ())))
        self._failures: list[Exception] = []
        self._noted: Exception | None = None
        self.options: Options = options
        """Of the lookup that says which instance is next."""
        with self._tally.lock:
            self._tally.budget.deposit()

    def begin(self, instance: Instance) -> Instance:
        """*instance* is tried now."""
        self.tried.append(instance)
        self.options = {**self.options, "exclude": (*self._given, *self.tried), "default": None}
        return instance

    def again(self, failure: Exception) -> bool:
        """Say whether to try another instance after this *failure*; where not, a note on it says why."""
        self._failures.append(failure)
        if why_not := self._why_not():
            self._note(why_not)
        return not why_not

    def hedge(self) -> bool:
        """Say whether to try another instance while the last one has not answered."""
        return not self._why_not()

    def failure(self) -> Exception:
        """Return the last failure, to be raised as all instances have been tried."""
        self._note("there is no other instance")
        return self._failures[-1]

    def _why_not(self) -> str:
        if len(self.tried) >= self.attempts:
            return f"{self.attempts} attempts were allowed"
        with self._tally.lock:
            if not self._tally.budget.withdraw():
                return "the retry budget is spent: a fifth of all calls, and one a second"
        return ""

    def _note(self, why_not: str) -> None:
        failure = self._failures[-1]
        if failure is not self._noted:
            self._noted = failure
            failure.add_note(f"tried {', '.join(map(str, self.tried))}; {why_not}")


def excluded(given: Collection[Instance] | Instance) -> Collection[Instance]:
    """Return *given*, a single instance as one of them: its host and its port would exclude nobody."""
    return (given,) if isinstance(given, Instance) else given


def _failing_check(instance: Instance) -> str:
    failing = next(check for check in instance.entry.checks if check.status == "critical")
    detail = f": {failing.output.strip().splitlines()[0][:80]}" if failing.output.strip() else ""
    return f"check {failing.name or failing.id!r}{detail}"


def _preferred(instances: tuple[Instance, ...], zone: str | None) -> tuple[Instance, ...]:
    """Return those of the *zone* when there are any, else all."""
    if zone is None:
        return instances
    return tuple(i for i in instances if i.zone == zone) or instances

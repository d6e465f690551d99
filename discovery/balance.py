"""Which of several instances: strategies, what calls have taught, and when to try again.

    live ──> Stats.usable ──> Strategy.pick ──> instance
                 ▲                  ▲
                 └── begin · end · report: load, latency and failures of the calls so far

    round_robin    each in turn
    random         any
    first          the first, of a set that is in order of preference (``near``)
    weighted       each in turn, in proportion to its weight
    least_loaded   the one of two random ones with fewer calls under way
    ewma           the one of two random ones with the lower latency times load
    ring_hash      by key; a change of the set moves only the keys that it must
    sticky         by key; a key keeps its instance for as long as that one is there

Laws:
- Pure: clocks and randomness are arguments.
- ``pick`` returns an element of what it is given, which is never empty.
- ``pick`` may run in many threads at once and takes no lock: state is one counter, or replaced whole.
  ``Stats`` and ``RetryBudget`` are written by one thread at a time, and may be read meanwhile.
- Ejection never empties: with less than half of the instances left it is the ejection that is wrong
  (``PANIC``), and all are used.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from math import exp
from types import MappingProxyType
from typing import Final, Protocol

from discovery.errors import ConfigurationError
from discovery.model import Instance

__all__ = [
    "STRATEGIES",
    "Ewma",
    "First",
    "LeastLoaded",
    "Random",
    "RetryBudget",
    "RingHash",
    "RoundRobin",
    "Stats",
    "Sticky",
    "Strategy",
    "Weighted",
    "strategy",
]

Below = Callable[[int], int]
"""Randomness: returns a whole number from 0 to below its argument, as ``random.randrange`` does."""

FAILURES: Final = 3
"""Failures in a row that eject an instance. One may be chance, and a load balancer's usual five are too
many for a client that shares its service's traffic with many others."""
EJECTION: Final = 5.0
EJECTION_MAX: Final = 60.0
"""Seconds that an ejection lasts: doubled each time in a row. Short, because the registry's own checks
remove a dead instance by then, and one that is only slow to start must not be lost for minutes."""
PANIC: Final = 0.5
"""The share of instances that must be left after ejection. When most calls fail on most instances the
fault is ours or the network's, and the few left would be overrun."""
DECAY: Final = 10.0
"""Seconds in which an observed latency loses two thirds of its weight, as in Finagle's peak EWMA."""
FAILED_LATENCY: Final = 1.0
"""Seconds that a failure counts as at least. An instance that fails at once would else look like the
fastest and draw all calls."""
UNKNOWN_LATENCY: Final = 1.0
"""Seconds assumed of an instance that has a call under way and has answered none yet: the first call goes
there at once, the next ones wait for what it tells."""


class Stats:
    """What calls have told about the instances of one service."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: dict[Instance, _Record] = {}
        self.ejected: Mapping[Instance, float] = MappingProxyType({})
        """Who is out, and until when on the clock; replaced whole."""

    def load(self, instance: Instance) -> int:
        """Return how many calls to *instance* are under way."""
        record = self._records.get(instance)
        return record.load if record is not None else 0

    def latency(self, instance: Instance) -> float | None:
        """Return the expected latency in seconds, None when *instance* has answered no call.

        It falls while nobody calls: an instance that was slow once is tried again.
        """
        record = self._records.get(instance)
        if record is None or record.latency is None:
            return None
        return record.latency * exp((record.observed_at - self._clock()) / DECAY)

    def begin(self, instance: Instance) -> None:
        """A call to *instance* begins."""
        self._record(instance).load += 1

    def end(self, instance: Instance) -> None:
        """A call to *instance* is over."""
        record = self._record(instance)
        record.load = max(record.load - 1, 0)

    def report(self, instance: Instance, *, ok: bool, latency: float | None = None) -> bool:
        """Take in how a call to *instance* went, and say whether that changed who is ejected.

        Args:
            latency: seconds that it took, when known.
        """
        record = self._record(instance)
        if ok:
            if latency is not None:
                self._observe(record, latency)
            record.failures = record.ejections = 0
            if instance in self.ejected:
                return self._eject({other: at for other, at in self.ejected.items() if other != instance})
            return False
        self._observe(record, max(latency or 0.0, FAILED_LATENCY))
        record.failures += 1
        if record.failures < FAILURES or instance in self.ejected:
            return False
        # One failure is enough after an ejection: what comes back from one is on trial.
        record.failures = FAILURES - 1
        lasts = min(EJECTION * 2.0**record.ejections, EJECTION_MAX)
        record.ejections += 1
        return self._eject({**self.ejected, instance: self._clock() + lasts})

    def usable(self, live: Sequence[Instance]) -> Sequence[Instance]:
        """Return *live* without those that are ejected, or all of it when fewer than half are left."""
        if not self.ejected:
            return live
        now = self._clock()
        left = tuple(i for i in live if self.ejected.get(i, now) <= now)
        return left if left and len(left) >= PANIC * len(live) else live

    def expire(self) -> bool:
        """Forget the ejections that are over, and say whether there were any."""
        now = self._clock()
        lasting = {instance: until for instance, until in self.ejected.items() if until > now}
        return len(lasting) < len(self.ejected) and self._eject(lasting)

    def keep(self, instances: Collection[Instance]) -> None:
        """Forget all that are not among *instances* and have no call under way."""
        for gone in [i for i, record in self._records.items() if i not in instances and not record.load]:
            del self._records[gone]
        if any(instance not in self._records for instance in self.ejected):
            self._eject({i: until for i, until in self.ejected.items() if i in self._records})

    def nothing_under_way(self) -> None:
        """Forget every call that has begun and not ended."""
        for record in self._records.values():
            record.load = 0

    def _record(self, instance: Instance) -> _Record:
        record = self._records.get(instance)
        if record is None:
            record = self._records[instance] = _Record()
        return record

    def _observe(self, record: _Record, latency: float) -> None:
        now = self._clock()
        known = record.latency
        if known is None or latency >= known:
            record.latency = latency  # a peak counts at once: bad news must not be averaged away
        else:
            weight = exp((record.observed_at - now) / DECAY)
            record.latency = known * weight + latency * (1 - weight)
        record.observed_at = now

    def _eject(self, ejected: dict[Instance, float]) -> bool:
        self.ejected = MappingProxyType(ejected)
        return True


class _Record:
    """One instance's share of ``Stats``."""

    __slots__ = ("ejections", "failures", "latency", "load", "observed_at")

    def __init__(self) -> None:
        self.load = 0
        self.latency: float | None = None
        self.observed_at = 0.0
        self.failures = 0  # in a row
        self.ejections = 0  # in a row


class RetryBudget:
    """How many calls may be tried again: a share of all calls, and a few each second besides.

    Without it an overload feeds itself: each call that fails is tried three times, and three times the
    load fails three times the calls.

    Args:
        most: retries that can be saved up; also what there is at the start.
    """

    RATIO: Final = 0.2
    """Retries for each call: a fifth more load is what a service in trouble is spared from exceeding."""
    PER_SECOND: Final = 1.0
    """Retries for each second, so that a process that calls once a minute may always try again."""
    MOST: Final = 10.0

    def __init__(self, clock: Callable[[], float], most: float = MOST) -> None:
        self._clock = clock
        self._most = most
        self._balance = most
        self._filled_at = clock()

    def deposit(self) -> None:
        """A call begins (not a retry)."""
        self._add(self.RATIO)

    def withdraw(self) -> bool:
        """Take one retry, and say whether there was one."""
        self._add(0.0)
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True

    def _add(self, amount: float) -> None:
        now = self._clock()
        amount += max(now - self._filled_at, 0.0) * self.PER_SECOND
        self._filled_at = now
        self._balance = min(self._balance + amount, self._most)


# --- strategies --------------------------------------------------------------------------------------


class Strategy(Protocol):
    """Chooses one of several instances."""

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        """Return one element of *live*, which is never empty.

        Args:
            stats: what calls have told about them.
            key: what the caller wants to meet the same instance for, a user's id for example.
        """


class RoundRobin:
    """Each in turn, beginning at a random place: a fleet started at once must not meet on the first."""

    def __init__(self, below: Below) -> None:
        self._next = itertools.count(below(1 << 16)).__next__

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        return live[self._next() % len(live)]


class Random:
    """Any, each as likely as the others."""

    def __init__(self, below: Below) -> None:
        self._below = below

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        return live[self._below(len(live))]


class Weighted:
    """Each in turn, in proportion to its weight; weight 0 only when all have it.

    The turns follow the golden-ratio sequence: multiples of it, modulo one, fall evenly into every
    interval, so that each instance's picks are spread and its share is right within a few picks, for
    any weights and with one counter for state.
    """

    _STEP: Final = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, made odd

    def __init__(self, below: Below) -> None:
        self._next = itertools.count(below(1 << 16)).__next__
        self._shares: tuple[Sequence[Instance], list[int]] = ((), [])

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        known, bounds = self._shares
        if known is not live:
            bounds = list(itertools.accumulate(max(instance.weight, 0) for instance in live))
            if not bounds[-1]:
                bounds = list(range(1, len(live) + 1))
            self._shares = live, bounds
        fraction = self._next() * self._STEP & 0xFFFF_FFFF_FFFF_FFFF
        return live[bisect_right(bounds, fraction * bounds[-1] >> 64)]


class First:
    """The first: for sets that come in order of preference, by distance for example."""

    def __init__(self, below: Below) -> None:
        pass

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        return live[0]


class LeastLoaded:
    """The one of two random instances that has fewer calls under way (power of two choices).

    Looking at all would send every client of a fleet to the same idle one at the same time.
    """

    def __init__(self, below: Below) -> None:
        self._below = below

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        one, other = _two(live, self._below)
        return other if stats.load(other) < stats.load(one) else one


class Ewma:
    """The one of two random instances whose latency times load is lower (peak EWMA)."""

    def __init__(self, below: Below) -> None:
        self._below = below

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        one, other = _two(live, self._below)
        return other if _cost(stats, other) < _cost(stats, one) else one


class RingHash:
    """The same key meets the same instance, in every process that sees the same instances.

    Each instance has ``POINTS`` points on a ring, and a key belongs to the point behind its own: when an
    instance goes, its keys alone move, and one that comes takes an equal share from each.
    """

    POINTS: Final = 160
    """Points of one instance. The shares' spread falls with the root of it: about 8 % here."""

    def __init__(self, below: Below) -> None:
        self._ring: tuple[Sequence[Instance], list[int], list[Instance]] = ((), [], [])

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        known, points, owners = self._ring
        if known is not live:
            ring = sorted((point, i) for i in live for point in _points(str(i), self.POINTS))
            points, owners = [point for point, _ in ring], [owner for _, owner in ring]
            self._ring = live, points, owners
        at = bisect_right(points, _points(_needed(key, "ring_hash"), 1)[0])
        return owners[at % len(owners)]


class Sticky:
    """A key keeps its instance while that one is there, also when others come; new keys go in turn.

    Known to this process alone. Of the keys the latest ``MOST`` at least are remembered.
    """

    MOST: Final = 10_000

    def __init__(self, below: Below) -> None:
        self._turn = RoundRobin(below)
        # Two generations instead of one ordered table: what is used moves to the young one, and a full
        # young one becomes the old one. No step of it needs a lock.
        self._young: dict[str, Instance] = {}
        self._old: dict[str, Instance] = {}

    def pick(self, live: Sequence[Instance], stats: Stats, key: str | None) -> Instance:
        key = _needed(key, "sticky")
        young = self._young
        found = young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            young[key] = found
        if found is not None:
            try:
                return live[live.index(found)]  # the same address, as the registry describes it now
            except ValueError:
                self._old.pop(key, None)
                if young.get(key) == found:  # unless another thread has chosen anew meanwhile
                    young.pop(key, None)
        if len(young) >= self.MOST:
            self._old, self._young = young, {}
            young = self._young
        # Two threads may come here with one key: the first decides for both.
        return young.setdefault(key, self._turn.pick(live, stats, key))


STRATEGIES: Final[Mapping[str, Callable[[Below], Strategy]]] = MappingProxyType(
    {
        "round_robin": RoundRobin,
        "random": Random,
        "first": First,
        "weighted": Weighted,
        "least_loaded": LeastLoaded,
        "ewma": Ewma,
        "ring_hash": RingHash,
        "sticky": Sticky,
    }
)


def strategy(name: str, below: Below) -> Strategy:
    """Return a new strategy by its *name*.

    Raises:
        ConfigurationError: there is none of that name.
    """
    try:
        return STRATEGIES[name](below)
    except KeyError:
        known = ", ".join(STRATEGIES)
        raise ConfigurationError(f"no strategy is called {name!r}; there are {known}") from None


def _two(live: Sequence[Instance], below: Below) -> tuple[Instance, Instance]:
    """Return two instances at random, different ones where there are two."""
    count = len(live)
    if count == 1:
        return live[0], live[0]
    first = below(count)
    second = below(count - 1)
    return live[first], live[second + (second >= first)]


def _cost(stats: Stats, instance: Instance) -> float:
    latency, load = stats.latency(instance), stats.load(instance)
    if latency is None:
        return UNKNOWN_LATENCY * load
    return latency * (load + 1)


def _points(text: str, count: int) -> list[int]:
    """Return *count* points of 64 bits for *text*, the same in every process (``hash`` is not)."""
    blocks = (blake2b(f"{n}:{text}".encode(), digest_size=64).digest() for n in range(-(-count // 8)))
    return [int.from_bytes(block[at : at + 8], "big") for block in blocks for at in range(0, 64, 8)][:count]


def _needed(key: str | None, name: str) -> str:
    if key is None:
        raise ConfigurationError(f"strategy {name!r} chooses by a key: pass key=, a user's id for example")
    return key

"""Who is to be asked next: questions that share a few readers, each with its time.

    add(item, at) ─> waiting ── its time has come, or hurry ──> next() ─> in hand ─> add again, or drop

Laws:
- An item is in one pair of hands at a time.
- A ``hurry`` is never lost: one for an item in hand, and not heeded, counts when it is added again.
- The lock is held for moments, and nothing is called while it is.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

__all__ = ["Rota"]

Item = TypeVar("Item", bound=Hashable)


class Rota(Generic[Item]):
    """Items with times on the monotonic clock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._times: dict[Item, float] = {}  # of those that wait
        self._in_hand: dict[Item, bool] = {}  # and whether somebody is in a hurry meanwhile
        self._heap: list[tuple[float, int, Item]] = []
        """With entries that no longer count: those whose time is not the item's."""
        self._numbers = itertools.count()
        self._ended = False

    def __len__(self) -> int:
        return len(self._times) + len(self._in_hand)

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._times)

    def add(self, item: Item, at: float) -> None:
        """Let *item* have its turn at *at*, or at once if somebody is in a hurry."""
        with self._changed:
            if self._in_hand.pop(item, False):
                at = 0.0
            if not self._ended:
                self._put(item, at)

    def hurry(self, items: Iterable[Item] | None = None) -> None:
        """Let those of *items* that are here have their turn now; None: all."""
        with self._changed:
            for item in list(self._times) + list(self._in_hand) if items is None else items:
                if item in self._in_hand:
                    self._in_hand[item] = True
                elif self._times.get(item, 0.0) > 0.0:
                    self._put(item, 0.0)

    def heed(self, item: Item) -> None:
        """Whoever was in a hurry until now gets what comes of the turn that *item* has."""
        with self._changed:
            if item in self._in_hand:
                self._in_hand[item] = False

    def drop(self, item: Item) -> None:
        """Forget *item*; whoever has it in hand keeps it."""
        with self._changed:
            self._times.pop(item, None)
            self._in_hand.pop(item, None)
            self._changed.notify_all()  # it may have been the last that somebody waited for

    def end(self) -> None:
        """Forget all, for good; nobody waits any more."""
        with self._changed:
            self._ended = True
            self._times.clear()
            self._heap.clear()
            self._changed.notify_all()

    def next(self) -> Item | None:
        """Wait for a turn and take the item in hand; None: there is nothing to wait for."""
        with self._changed:
            while True:
                while self._heap and self._times.get(self._heap[0][2]) != self._heap[0][0]:
                    heapq.heappop(self._heap)
                if not self._heap:
                    return None
                at, _, item = self._heap[0]
                left = at - time.monotonic()
                if left <= 0:
                    heapq.heappop(self._heap)
                    del self._times[item]
                    self._in_hand[item] = False
                    return item
                self._changed.wait(left)

    def _put(self, item: Item, at: float) -> None:
        self._times[item] = at
        heapq.heappush(self._heap, (at, next(self._numbers), item))
        self._changed.notify()

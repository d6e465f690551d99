"""Several catalogues behind one: each question is answered by the first that can.

    nothing known    every source in order, each with a time budget; then what was written down
    something known  the source that it came from, and better ones when they are due again
                                                                                   ▲
                     a source that failed while another answered rests for PROBE ──┘

Laws:
- What a source has told is not replaced by a worse one: an outage makes an answer stale, not poorer.
  (DNS tells no tags; and the DNS of a Consul that starts denies what it has not loaded yet.)
- A refusal (403, 429) is no answer, and no denial by another source outweighs it.
- A budget is for those who know nothing and wait. Whoever has an answer lets a slow source take its time.
- The index of one source is never shown to another.
- A wrong setting is raised at once: going on would hide it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from discovery.backends import Catalogue, Reader, read_once
from discovery.backends.disk import Disk
from discovery.errors import (
    Attempt,
    ConfigurationError,
    DiscoveryError,
    RegistryError,
    RegistryTimeout,
    RegistryUnavailable,
)
from discovery.model import Query, Reply, Source

__all__ = ["Chain", "Link", "Standing"]

PROBE: Final = 30.0
"""Seconds until a source that failed is asked again while another one answers; up to a fifth is taken off
at random, so that the processes of one host do not ask in step."""


class Standing(Protocol):
    """What whoever asks has already; an ``engine.Known``."""

    @property
    def where(self) -> str:
        """The address that it came from."""

    @property
    def stale(self) -> bool: ...


@dataclass(eq=False)
class Link:
    """One source of a chain."""

    catalogue: Catalogue
    budget: float | None = None
    """Seconds for an answer while somebody waits and other sources are left; None: as long as it takes."""
    covers: Callable[[Query], bool] = lambda _: True
    """Whether the source can answer a question at all."""
    rests_until: float = 0.0  # seconds on the monotonic clock


class Chain:
    """A catalogue that asks the *links* in order. Creating it does no I/O.

    Args:
        known: returns what whoever asks has already from here, None when that is nothing.
        disk: where answers are written down.
        advice: what to do when none of them answers, for the error that says so.
    """

    source: Source = "http"

    def __init__(self, links: Sequence[Link], *, disk: Disk | None = None, advice: str = "") -> None:
        self.links: tuple[Link, ...] = tuple(links)
        self.advice = advice
        self.disk = disk
        self.known: Callable[[Query], Standing | None] = lambda _: None
        self._finding: dict[Query, _Asked] = {}

    @property
    def where(self) -> str:
        return " or ".join(link.catalogue.where for link in self.links) or "no source"

    def tried(self, query: Query) -> tuple[Attempt, ...]:
        """Return who has been asked in vain by the search for *query* that is under way."""
        asked = self._finding.get(query)
        return asked.attempts if asked is not None else ()

    def connect(self) -> ChainReader:
        return ChainReader(self)

    def read(self, query: Query, *, timeout: float = 10.0) -> Reply:
        return read_once(self, query, timeout)

    def close(self) -> None:
        """Close what the sources keep open; idempotent."""
        for link in self.links:
            close = getattr(link.catalogue, "close", None)
            if close is not None:
                close()


class ChainReader:
    """One conversation with all sources."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._readers: dict[Link, Reader] = {}
        self._unwritten: tuple[Query, Any] | None = None
        self._interrupted = False

    def read(self, query: Query, *, index: int = 0, wait: float = 0.0, timeout: float = 10.0) -> Reply:
        self._write_down()
        covering = [link for link in self._chain.links if link.covers(query)]
        known = self._chain.known(query)
        for n, link in enumerate(covering):
            if known is not None and link.catalogue.where == known.where:
                return self._keep(query, covering[:n], link, index, wait, timeout)
        return self._find(query, covering, timeout)

    def interrupt(self) -> None:
        # First the flag, then the readers: _read does it the other way round, so that whichever comes
        # second sees the other.
        self._interrupted = True
        for reader in list(self._readers.values()):
            reader.interrupt()

    def close(self) -> None:
        self._write_down()
        for reader in self._readers.values():
            reader.close()

    # --- nothing is known

    def _find(self, query: Query, links: Sequence[Link], timeout: float) -> Reply:
        asked = self._chain._finding[query] = _Asked()
        try:
            return self._first(query, links, timeout, asked)
        finally:
            self._chain._finding.pop(query, None)

    def _first(self, query: Query, links: Sequence[Link], timeout: float, asked: _Asked) -> Reply:
        now = time.monotonic()
        deadline = now + timeout
        # 1. Those that did not fail a moment ago, then those that did: somebody must answer.
        for link in sorted(links, key=lambda link: link.rests_until > now):
            if reply := asked.answer(self, link, query, min(link.budget or timeout, timeout)):
                return self._found(query, reply, asked)
        # 2. What was written down.
        disk = self._chain.disk
        if disk is not None and (recalled := disk.recall(query)) is not None:
            error = asked.failure(f"; using what was known {_ago(recalled.age)} ago")
            return Reply(
                recalled.value, 1, source="disk", where=disk.directory, attempts=asked.attempts, error=error
            )
        # 3. Those that were only slow.
        for link in [link for link in links if isinstance(asked.errors.get(link), RegistryTimeout)]:
            left = deadline - time.monotonic()
            if left > 0 and link.budget and (reply := asked.answer(self, link, query, left)):
                return self._found(query, reply, asked)
        raise asked.failure(self._chain.advice)

    def _found(self, query: Query, reply: Reply, asked: _Asked) -> Reply:
        if reply.error is None:
            asked.rest(time.monotonic())
            self._remember(query, reply)
        return replace(reply, attempts=asked.attempts)

    # --- something is known, from one of the links

    def _keep(
        self, query: Query, better: Sequence[Link], link: Link, index: int, wait: float, timeout: float
    ) -> Reply:
        asked = _Asked()
        for other in better:
            if other.rests_until <= time.monotonic():
                if reply := asked.answer(self, other, query, timeout):
                    return self._found(query, reply, asked)
                other.rests_until = _rest(time.monotonic())
        if better:
            wait = min(wait, max(min(other.rests_until for other in better) - time.monotonic(), 0.0))
        reply = asked.answer(self, link, query, timeout, index=index if wait else 0, wait=wait)
        if reply is None:
            raise asked.failure(self._chain.advice)
        self._remember(query, reply)
        return reply

    # --- both

    def _read(self, link: Link, query: Query, index: int, wait: float, timeout: float) -> Reply:
        reader = self._readers.get(link)
        if reader is None:
            reader = self._readers[link] = link.catalogue.connect()
        if self._interrupted:
            raise RegistryUnavailable(f"asking {link.catalogue.where} was interrupted")
        reply = reader.read(query, index=index, wait=wait, timeout=timeout)
        return reply if reply.where else replace(reply, where=link.catalogue.where)

    def _remember(self, query: Query, reply: Reply) -> None:
        # What a sibling process has shared it writes down itself; what is fixed needs no memory.
        if reply.source in ("http", "dns") and reply.error is None and reply.known_leader:
            self._unwritten = query, reply.value

    def _write_down(self) -> None:
        """Write down what was read last: with the next read, so that nobody waits for the disk to hear it."""
        unwritten, self._unwritten = self._unwritten, None
        if unwritten is not None and self._chain.disk is not None:
            self._chain.disk.keep(*unwritten)


class _Asked:
    """Who was asked for one answer, and why in vain."""

    def __init__(self) -> None:
        self.errors: dict[Link, DiscoveryError] = {}
        self.attempts: tuple[Attempt, ...] = ()

    def answer(
        self,
        reader: ChainReader,
        link: Link,
        query: Query,
        timeout: float,
        *,
        index: int = 0,
        wait: float = 0.0,
    ) -> Reply | None:
        started = time.monotonic()
        try:
            reply = reader._read(link, query, index, wait, timeout)
        except ConfigurationError:
            raise
        except (RegistryUnavailable, RegistryError) as exc:
            self._failed(link, exc, time.monotonic() - started)
            return None
        if not reply.value and self._refusal() is not None:
            denial = RegistryUnavailable(
                f"{link.catalogue.where} knows of none, and is not the only one to ask"
            )
            self._failed(link, denial, time.monotonic() - started)
            return None
        return reply

    def rest(self, now: float) -> None:
        """Another source has answered: let those that could not be reached rest."""
        for link, error in self.errors.items():
            if isinstance(error, RegistryUnavailable):
                link.rests_until = _rest(now)

    def failure(self, addition: str = "") -> DiscoveryError:
        """Return the error to raise: a refusal before an outage, one source's own words when it is alone."""
        error: DiscoveryError | None = self._refusal()
        if error is None and len(self.errors) == 1:
            error = next(iter(self.errors.values()))
        if error is not None:
            cause = error.__cause__
            error = copy(error)  # what is added below is about this question alone
            error.__cause__ = cause
        else:
            tried = "; ".join(map(str, self.attempts)) or "there is none to ask"
            error = RegistryUnavailable(f"no source of services answers: {tried}")
        if addition:
            error.args = (f"{error}{addition}",)
        error.attempts = self.attempts
        return error

    def _refusal(self) -> RegistryError | None:
        return next((error for error in self.errors.values() if isinstance(error, RegistryError)), None)

    def _failed(self, link: Link, error: RegistryUnavailable | RegistryError, elapsed: float) -> None:
        self.errors[link] = error
        where = link.catalogue.where
        problem = str(error).replace(f" at {where}", "", 1).removeprefix(f"{where} ")  # it is said before
        own = error.attempts or (Attempt(where, elapsed, problem),)
        self.attempts = (*self.attempts, *own)


def _rest(now: float) -> float:
    return now + PROBE * random.uniform(0.8, 1.0)


def _ago(seconds: float) -> str:
    for unit, name in ((3600.0, "h"), (60.0, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"

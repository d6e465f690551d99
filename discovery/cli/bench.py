"""``discovery bench``: what lookups cost on this machine, measured for about two seconds.

Laws:
- Every number is of something that was called here and now; what cannot be measured is left out by name.
- The clock's own cost is in the warm lookups' numbers, and shown beside them.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from discovery import sources
from discovery.backends import Catalogue
from discovery.backends.dns import Dns, Server
from discovery.cli.text import Terminal, duration, plain, table, wrapped
from discovery.client import Client
from discovery.config import Config
from discovery.errors import DiscoveryError, LookupFailed, ServiceNotFound
from discovery.model import ServiceQuery
from discovery.names import service_name

__all__ = ["Measured", "measure", "run"]

_BUDGET: Final = 0.4  # s for each of four measurements, beside a tenth for the clock
_CLOCK_BUDGET: Final = 0.1
_CALLS: Final = 200_000
"""Calls of one measurement at most: a warm lookup reaches that within its budget."""
_TIMEOUT: Final = 1.0  # s for one question to a source that may be away


@dataclass(frozen=True, slots=True)
class Measured:
    """How long one thing takes. Seconds."""

    what: str
    p50: float
    p99: float
    least: float
    calls: int


def measure(
    what: str,
    call: Callable[[], object],
    budget: float,
    *,
    after: Callable[[], object] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Measured:
    """Call *call* again and again for *budget* seconds, at least once.

    Args:
        after: called after each call, and not measured.
        clock: nanoseconds.
    """
    samples: list[int] = []
    deadline = clock() + int(budget * 1e9)
    while True:
        started = clock()
        call()
        ended = clock()
        samples.append(ended - started)
        if after is not None:
            after()
        if ended >= deadline or len(samples) >= _CALLS:
            break
    samples.sort()
    last = len(samples) - 1
    return Measured(
        what, samples[last // 2] / 1e9, samples[last * 99 // 100] / 1e9, samples[0] / 1e9, len(samples)
    )


def run(config: Config, name: str | None, *, as_json: bool, terminal: Terminal) -> int:
    """Measure, print, and return the exit code.

    Raises:
        DiscoveryError: nothing can be looked up.
    """
    if name is None:
        name = _some_service(config)
    rows = []
    absent: list[str] = []
    for measured in _measurements(config, name, absent):
        rows.append(measured)
    if as_json:
        print(json.dumps(_to_json(name, rows, absent), indent=2))
        return 0
    cells = [("", "P50", "P99", "LEAST", "CALLS")]
    cells += [(m.what, duration(m.p50), duration(m.p99), duration(m.least), f"{m.calls:,}") for m in rows]
    heading, *lines = table(cells, terminal.width)
    machine = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    title = wrapped(f"lookups of {plain(name)}; {machine}", terminal.width)
    absent = [line for said in absent for line in wrapped(said, terminal.width)]
    print("\n".join([*title, "", terminal.paint(heading, "strong"), *lines, *absent]))
    return 0


def _some_service(config: Config) -> str:
    """Return a service that can be looked up."""
    with Client(config) as client:
        for name in sorted(client.names()):
            try:
                client.lookup(name)
            except LookupFailed:
                continue
            return name
    raise ServiceNotFound("there is no service to look up; register one, or name one: discovery bench NAME")


def _measurements(config: Config, name: str, absent: list[str]) -> Iterator[Measured]:
    """Measure one after another; say in *absent* what could not be."""

    fresh: list[Client] = []

    def first() -> None:
        fresh.append(Client(config))
        fresh[-1].lookup(name)

    with Client(config) as client:
        client.lookup(name)
        yield measure("warm lookup", lambda: client.lookup(name), _BUDGET)
    yield measure("the clock alone", lambda: None, _CLOCK_BUDGET)
    yield measure("first lookup of a new client", first, _BUDGET, after=lambda: fresh.pop().close())

    query = ServiceQuery(service_name(name), config.dc)
    chain = sources.catalogue(config)
    try:
        registries = [link.catalogue for link in chain.links if link.catalogue.source == "http"]
        yield from _first_that_answers("registry", registries, query, absent)
    finally:
        chain.close()
    servers = [_NameServer(server, config.domain) for server in sources.name_servers(config)]
    yield from _first_that_answers("DNS", [s for s in servers if s.covers(query)], query, absent)


def _first_that_answers(
    kind: str, catalogues: list[Catalogue], query: ServiceQuery, absent: list[str]
) -> Iterator[Measured]:
    for catalogue in catalogues:
        ask = functools.partial(catalogue.read, query, timeout=_TIMEOUT)
        try:
            ask()
            yield measure(f"{kind} round trip, {catalogue.where}", ask, _BUDGET)
        except DiscoveryError:
            continue
        return
    asked = ", ".join(catalogue.where for catalogue in catalogues) or "none to ask"
    absent.append(f"{kind} round trip: no answer ({asked})")


class _NameServer(Dns):
    """One name server, which says who it is."""

    def __init__(self, server: Server, domain: str) -> None:
        super().__init__(lambda: [server], domain)
        self._server = server

    @property
    def where(self) -> str:
        return str(self._server)


def _to_json(name: str, rows: list[Measured], absent: list[str]) -> dict[str, Any]:
    return {
        "service": name,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "measured": [
            {
                "what": m.what,
                "p50_seconds": m.p50,
                "p99_seconds": m.p99,
                "least_seconds": m.least,
                "calls": m.calls,
            }
            for m in rows
        ],
        "not_measured": absent,
    }

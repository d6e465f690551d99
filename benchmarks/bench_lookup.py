#!/usr/bin/env python3
"""What a lookup costs, beside what people use today.

    benchmarks/bench_lookup.py [--smoke] [--rounds N] [SECTION ...]

One process; contenders take turns in random order, so that a noisy machine is noisy for all, and ask one real
Consul agent (tools/get-consul). Peers that are not installed are named and left out: `make bench` installs
them from benchmarks/requirements.lock.

calls    microseconds of one look-up: half of them take less than p50, 99 of 100 less than p99. Each is timed
         by itself, and the clock's own cost, a twentieth of a microsecond, is in it. found: how many of the
         instances the contender can see (one DNS answer over UDP shows three). x: p50 as a multiple of ours.
threads  millions of look-ups a second that one thread makes, and that eight make together; and how many the
         slowest of the eight made for each one of the fastest.
start    milliseconds of `import discovery`, and of the first lookup, in fresh interpreters.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from promises import INSTALLED, Promise, Run, child, main, percentile

import discovery
from discovery.client import default_client

NAME = "python-micro-service"
INSTANCES = 5
FAST = 5000  # calls of a round, where one takes less than a microsecond
THREADS = 8


def serve(run: Run) -> None:
    """Have instances, and the default client know them."""
    for n in range(INSTANCES):
        body = {"Name": NAME, "ID": f"{NAME}-{n}", "Port": 5000 + n}
        run.agent.request("PUT", "/v1/agent/service/register", body)
    default_client().wait_for(NAME, min_instances=INSTANCES)
    discovery.lookup(NAME)


# --- calls ----------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """One way to look the service up."""

    name: str
    call: Callable[[], Any]
    found: int = INSTANCES
    calls: int = 100  # of a round
    samples: list[float] = field(default_factory=list)  # us

    def measure(self) -> None:
        call, clock = self.call, time.perf_counter_ns
        for _ in itertools.repeat(None, self.calls):
            start = clock()
            call()
            self.samples.append((clock() - start) / 1000)


class Awaiting(Contender):
    """One that is awaited, in a loop that runs already."""

    def measure(self) -> None:
        asyncio.run(self._measure())

    async def _measure(self) -> None:
        call, clock = self.call, time.perf_counter_ns
        for _ in itertools.repeat(None, self.calls):
            start = clock()
            await call()
            self.samples.append((clock() - start) / 1000)


def contenders(run: Run) -> Iterator[Contender]:
    """All that are installed, discovery.lookup first."""
    agent = run.agent
    url = f"{agent.url}/v1/health/service/{NAME}?passing"
    everybody = discovery.lookup_all(NAME)
    yield Contender("discovery.lookup", lambda: discovery.lookup(NAME), len(everybody), FAST)
    client = discovery.AsyncClient(client=default_client())
    yield Awaiting("AsyncClient.lookup", lambda: client.lookup(NAME), len(everybody), FAST)
    turn = itertools.cycle(tuple(everybody)).__next__
    yield Contender("itertools.cycle, and no discovery", turn, len(everybody), FAST)

    if "requests" in INSTALLED:
        import requests

        session = requests.Session()
        if "cachetools" in INSTALLED:
            yield Contender("TTLCache(1 s) + cycle, by hand", by_hand(session, url), calls=FAST)
        yield Contender("requests.get, the HTTP API", lambda: requests.get(url, timeout=9).json())
        yield Contender("requests.Session, the HTTP API", lambda: session.get(url).json())
    if "consul" in INSTALLED:
        import consul

        peer = consul.Consul(host="127.0.0.1", port=agent.http_port)
        yield Contender("py-consul", lambda: peer.health.service(NAME, passing=True)[1])
    if "dns" in INSTALLED:
        import dns.resolver

        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], agent.dns_port
        target = f"{NAME}.service.consul"
        found = len(resolver.resolve(target, "SRV"))
        yield Contender("dnspython, SRV", lambda: resolver.resolve(target, "SRV"), found)
        if "srvlookup" in INSTALLED:
            import srvlookup

            dns.resolver.default_resolver = resolver  # the only way to tell it which server to ask
            found = len(srvlookup.lookup(NAME, "tcp", "service.consul"))
            yield Contender("srvlookup", lambda: srvlookup.lookup(NAME, "tcp", "service.consul"), found)


def by_hand(session: Any, url: str) -> Callable[[], tuple[str, int]]:
    """What people write: a second of cache before the HTTP API, and a cycle over what it said."""
    import cachetools

    cache: Any = cachetools.TTLCache(maxsize=100, ttl=1.0)

    def lookup() -> Any:
        try:
            return next(cache[NAME])
        except KeyError:
            rows = session.get(url).json()
            cache[NAME] = itertools.cycle([(row["Node"]["Address"], row["Service"]["Port"]) for row in rows])
            return next(cache[NAME])

    return lookup


def calls(run: Run) -> Iterator[Promise]:
    serve(run)
    everyone = list(contenders(run))
    for _ in range(run.rounds):
        for contender in random.sample(everyone, len(everyone)):
            contender.measure()
    ours = statistics.median(everyone[0].samples)
    print(f"{'one look-up':<40}{'p50 us':>9}{'p99 us':>9}{'min us':>9}{'found':>7}{'x':>9}")
    for contender in everyone:
        samples = contender.samples
        p50 = statistics.median(samples)
        row = f"{p50:>9.2f}{percentile(samples, 99):>9.2f}{min(samples):>9.2f}"
        print(f"{contender.name:<40}{row}{contender.found:>7}{p50 / ours:>9,.1f}")
    yield Promise("warm discovery.lookup, p50", ours, 1, "us")
    yield Promise("warm discovery.lookup, p99", percentile(everyone[0].samples, 99), 5, "us")
    yield Promise("warm AsyncClient.lookup, p50", statistics.median(everyone[1].samples), 1.5, "us")
    for contender in everyone:
        if contender.name == "py-consul":
            times = statistics.median(contender.samples) / ours
            yield Promise("warm discovery.lookup, faster than py-consul", times, 1000, "x", at_least=True)


# --- threads --------------------------------------------------------------------------------------------


def spin(call: Callable[[], Any], count: int, seconds: float) -> tuple[float, float]:
    """Return how many calls a second *count* threads make together, and slowest by fastest thread."""
    made = [0] * count
    barrier = threading.Barrier(count + 1)
    over = threading.Event()

    def work(n: int) -> None:
        barrier.wait()
        while not over.is_set():
            for _ in itertools.repeat(None, 100):
                call()
            made[n] += 100

    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    begun = time.perf_counter()
    time.sleep(seconds)
    over.set()
    for thread in threads:
        thread.join()
    return sum(made) / (time.perf_counter() - begun), min(made) / max(made)


def threads(run: Run) -> Iterator[Promise]:
    serve(run)
    ways: dict[str, Callable[[], Any]] = {"discovery.lookup": lambda: discovery.lookup(NAME)}
    if {"requests", "cachetools"} <= INSTALLED:
        import requests

        unlocked = by_hand(requests.Session(), f"{run.agent.url}/v1/health/service/{NAME}?passing")
        lock = threading.Lock()

        def locked() -> Any:
            with lock:  # a TTLCache is not made for threads
                return unlocked()

        ways["TTLCache(1 s) + cycle + Lock, by hand"] = locked
    seconds = 0.2 if run.smoke else 4.0  # of which each thread gets slices of 5 ms
    alone: dict[str, list[float]] = {name: [] for name in ways}
    together: dict[str, list[float]] = {name: [] for name in ways}
    fair: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(max(run.rounds // 4, 1)):
        for name in random.sample(list(ways), len(ways)):
            alone[name].append(spin(ways[name], 1, seconds)[0] / 1e6)
            sum_of_all, fairness = spin(ways[name], THREADS, seconds)
            together[name].append(sum_of_all / 1e6)
            fair[name].append(fairness)
    print(f"{'look-ups of threads':<40}{'1: M/s':>12}{f'{THREADS}: M/s':>12}{'slowest/fastest':>19}")
    for name in ways:
        one, all_, fairness = map(statistics.median, (alone[name], together[name], fair[name]))
        print(f"{name:<40}{one:>12.2f}{all_:>12.2f}{fairness:>19.2f}")
        if name == "discovery.lookup":
            yield Promise(f"{THREADS} threads together, by one thread alone", all_ / one, 0.8, "x", True)
            yield Promise(f"{THREADS} threads, slowest by fastest", fairness, 0.5, "", True)
    yield Promise(f"{THREADS} threads, turns of instances differ by", turns_differ(), 1)


def turns_differ() -> int:
    """Return by how many the instances' turns differ, when all threads together have taken many."""
    shares: list[Counter[discovery.Instance]] = [Counter() for _ in range(THREADS)]

    def work(share: Counter[discovery.Instance]) -> None:
        share.update(discovery.lookup(NAME) for _ in range(20_000))

    workers = [threading.Thread(target=work, args=(share,)) for share in shares]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    turns = sum(shares, Counter[discovery.Instance]()).values()
    return max(turns) - min(turns)


# --- start ----------------------------------------------------------------------------------------------

IMPORT = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
import discovery
took = time.perf_counter() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(took * 1000, *sorted(new - sys.stdlib_module_names - {"discovery"}))
"""
FIRST = """
import sys, time
import discovery, discovery.client, discovery.backends.consul, importlib.metadata
start = time.perf_counter()
discovery.lookup(sys.argv[1])
print((time.perf_counter() - start) * 1000)
"""
COLD = """
import sys, time
start = time.perf_counter()
import discovery
discovery.lookup(sys.argv[1], timeout=10.0)
print((time.perf_counter() - start) * 1000)
"""


def start(run: Run) -> Iterator[Promise]:
    serve(run)
    programs = {
        "import discovery": (IMPORT,),
        "the first lookup, libraries loaded": (FIRST, NAME),
        "import and lookup, in a new process": (COLD, NAME),
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    foreign: set[str] = set()
    for _ in range(2 if run.smoke else 3 * run.rounds):
        for name in random.sample(list(programs), len(programs)):
            took, *modules = child(*programs[name])
            times[name].append(float(took))
            foreign |= set(modules)
    print(f"{'start':<40}{'p50 ms':>9}{'max ms':>9}{'min ms':>9}")
    for name, samples in times.items():
        print(f"{name:<40}{statistics.median(samples):>9.1f}{max(samples):>9.1f}{min(samples):>9.1f}")
    print(f"third-party modules that `import discovery` loads: {', '.join(sorted(foreign)) or 'none'}")
    imported, first, _ = times.values()
    yield Promise("import discovery", statistics.median(imported), 40, "ms")
    yield Promise("import discovery, third-party modules", len(foreign), 0)
    yield Promise("first lookup after imports", statistics.median(first), 10, "ms")


if __name__ == "__main__":
    main(__doc__ or "", {"calls": calls, "threads": threads, "start": start})

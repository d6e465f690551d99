#!/usr/bin/env python3
"""What a lookup costs, beside what people use today: one process, contenders interleaved, ratios.

    benchmarks/bench_lookup.py [--smoke] [--rounds N] [--calls N] [--instances N]

All contenders ask one real Consul agent (tools/get-consul) for one service. Each round runs every one in
a random order, so that a noisy machine is noisy for all. Peers that are not installed are named and left out:
`make bench` installs them from benchmarks/requirements.lock.

Columns: p50, p99 and least time per call in microseconds; how many instances the contender can see (one DNS
answer over UDP shows three); and p50 as a multiple of portcall's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import discovery
from tests.tools import ConsulAgent

NAME = "python-micro-service"


@dataclass
class Contender:
    """One way to look a service up."""

    name: str
    call: Callable[[], Any]
    found: int
    batch: int = 1
    """Calls per sample: a call shorter than the clock's own cost is measured in batches."""
    samples: list[float] = field(default_factory=list)

    def measure(self, calls: int) -> None:
        call, batch = self.call, self.batch
        for _ in range(max(1, calls // batch) if batch > 1 else calls):
            start = time.perf_counter_ns()
            for _ in itertools.repeat(None, batch):
                call()
            self.samples.append((time.perf_counter_ns() - start) / batch / 1000)


def contenders(agent: ConsulAgent) -> tuple[list[Contender], list[str]]:
    """Return the contenders, and one sentence for each that is not here."""
    host, port = "127.0.0.1", agent.http_port
    url = f"{agent.url}/v1/health/service/{NAME}?passing"
    everyone: list[Contender] = []
    absent: list[str] = []

    client = discovery.Client(consul=discovery.Config.from_env({"CONSUL_HTTP_ADDR": agent.address}).consul)
    client.lookup(NAME)
    everyone.append(
        Contender(
            "portcall: discovery.lookup", lambda: client.lookup(NAME), len(client.lookup_all(NAME)), 1000
        )
    )

    try:
        import cachetools
    except ImportError:
        absent.append("cachetools is not installed")
    else:
        cache: Any = cachetools.TTLCache(maxsize=100, ttl=1.0)

        def by_hand() -> Any:
            """What people write: a second of cache before the HTTP API, and a cycle over what it said."""
            try:
                return next(cache[NAME])
            except KeyError:
                rows = client.lookup_all(NAME)
                cache[NAME] = itertools.cycle([tuple(row) for row in rows])
                return next(cache[NAME])

        everyone.append(Contender("TTLCache(1 s) + itertools.cycle, by hand", by_hand, 5, 1000))

    def plain() -> Any:
        with urllib.request.urlopen(url) as reply:
            return reply.read()

    everyone.append(Contender("urllib.request to the HTTP API", plain, len(client.lookup_all(NAME))))

    try:
        import requests
    except ImportError:
        absent.append("requests is not installed")
    else:
        session = requests.Session()
        everyone.append(
            Contender("requests.Session", lambda: session.get(url).json(), len(session.get(url).json()))
        )

    try:
        import consul
    except ImportError:
        absent.append("py-consul is not installed")
    else:
        peer = consul.Consul(host=host, port=port)
        everyone.append(
            Contender(
                "py-consul",
                lambda: peer.health.service(NAME, passing=True)[1],
                len(peer.health.service(NAME, passing=True)[1]),
            )
        )

    import dns.resolver

    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = [host], agent.dns_port
    target = f"{NAME}.service.consul"
    everyone.append(
        Contender(
            "dnspython, SRV", lambda: resolver.resolve(target, "SRV"), len(resolver.resolve(target, "SRV"))
        )
    )
    try:
        import srvlookup
    except ImportError:
        absent.append("srvlookup is not installed")
    else:
        dns.resolver.default_resolver = resolver  # the only way to tell it which server to ask

        def by_srvlookup() -> Any:
            return srvlookup.lookup(NAME, "tcp", "service.consul")

        everyone.append(Contender("srvlookup", by_srvlookup, len(by_srvlookup())))
    return everyone, absent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=100, help="of a slow contender per round")
    parser.add_argument("--instances", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one short round, to see that it runs")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.calls = 1, 5

    with ConsulAgent() as agent:
        for n in range(options.instances):
            body = {"Name": NAME, "ID": f"{NAME}-{n}", "Port": 5000 + n}
            agent.request("PUT", "/v1/agent/service/register", body)
        everyone, absent = contenders(agent)
        for _ in range(options.rounds):
            for contender in random.sample(everyone, len(everyone)):
                contender.measure(options.calls * contender.batch if contender.batch > 1 else options.calls)
        version = ".".join(map(str, agent.version))

    ours = statistics.median(everyone[0].samples)
    print(
        f"{options.instances} instances, real Consul {version}, {options.rounds} rounds, "
        f"load average {os.getloadavg()[0]:.1f}\n"
    )
    print(f"{'per call':<42}{'p50 us':>10}{'p99 us':>10}{'min us':>10}{'found':>7}{'x ours':>9}")
    for contender in everyone:
        samples = sorted(contender.samples)
        p50, p99 = statistics.median(samples), samples[int(len(samples) * 0.99)]
        print(
            f"{contender.name:<42}{p50:>10.2f}{p99:>10.2f}{samples[0]:>10.2f}"
            f"{contender.found:>7}{p50 / ours:>9.0f}"
        )
    for sentence in absent:
        print(f"left out: {sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

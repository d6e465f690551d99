#!/usr/bin/env python3
"""What an answer costs, beside other DNS servers: one run, servers interleaved, ratios with their spread.

    benchmarks/bench_dns.py [--smoke] [--rounds N] [--seconds S] [--plot FILE]

The server has one core, the load generator (benchmarks/nameservers/load.c) another. The figure that counts
is the server's CPU time for a query at full load, user and system: on a shared machine it is steadier than
queries a second, of which it is the inverse. Latencies are compared at equal offered load.

Each round runs every server in a random order, so that a noisy machine is noisy for all. Figures are medians
over the rounds; a ratio is the median of the rounds' ratios, with the least and the greatest. Peers that are
not installed are named: as root, tools/get-peers installs them (`make bench` does).

Ours has everything on that it has in real life: the catalogue followed, policy and rate limit, EDNS, metrics.
unbound and dnsmasq answer from a warm cache and are never told of a change; miekg/dns and the C server have
their answers built in.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dns.message
import dns.query

from benchmarks.nameservers import servers
from benchmarks.nameservers.load import Load, Outcome, cores, cpu_ns, read_questions, write_questions
from benchmarks.nameservers.servers import Absent, Catalogue, Registry, Server, Starter

RATES = (10_000, 50_000)
"""Questions a second at which latencies are compared."""
_FORWARDED = 20_000  # different names, so that none is asked twice
_WINDOW_FORWARDING = 32
_HOUR = {"dns_config": {"service_ttl": {"*": "1h"}}}
"""What makes an answer one that caches keep for longer than a run."""
_ATTEMPTS = 10  # at a run that something else on this machine spoiled
_LARGE_PATIENCE = 120.0  # s until 10,000 names are known


@dataclass
class Contender:
    """A server and what was measured of it."""

    server: Server
    closed: list[Outcome] = field(default_factory=list)
    at_rate: dict[int, list[Outcome]] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """CPU microseconds for a query."""
        return statistics.median(one.cpu_us_per_query for one in self.closed)

    @property
    def costs(self) -> tuple[float, float]:
        """The least and the greatest of them."""
        all_costs = [one.cpu_us_per_query for one in self.closed]
        return min(all_costs), max(all_costs)

    def latency(self, rate: int, which: Callable[[Outcome], float]) -> str:
        outcomes = self.at_rate.get(rate, [])
        sound = [one for one in outcomes if one.sound]
        if not sound:
            # Beyond what it can do; or, where this stands for everybody, the load did not get its core.
            return "overload" if outcomes else "-"
        return f"{statistics.median(map(which, sound)):.0f}"


@dataclass
class Report:
    """What is printed in the end: the goals, met or not."""

    goals: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def goal(
        self, what: str, limit: float, measured: float, unit: str, why: str = "", *, least: bool = False
    ) -> None:
        met = measured >= limit if least else measured <= limit
        sign = ">=" if least else "<="
        verdict = "met" if met else f"MISSED{': ' if why else ''}{why}"
        self.goals.append((what, f"{sign} {limit:g}{unit}", f"{measured:.3g}{unit}", verdict))

    def unknown(self, what: str, why: str) -> None:
        self.goals.append((what, "", "", f"not measured: {why}"))


def query(name: str, qtype: str, *, edns: bool = False) -> bytes:
    if edns:
        return dns.message.make_query(name, qtype, use_edns=0, payload=1232).to_wire()
    return dns.message.make_query(name, qtype).to_wire()


def questions_of(catalogue: Catalogue) -> list[bytes]:
    """A without EDNS, as glibc and musl ask, and SRV with it, as Go does; in random order."""
    names = [f"{catalogue.name(number)}.service.consul" for number in range(catalogue.services)]
    asked = [query(one, "A") for one in names] + [query(one, "SRV", edns=True) for one in names]
    random.Random(1).shuffle(asked)
    return asked


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace, scratch: Path, stack: ExitStack) -> None:
        self.rounds: int = options.rounds
        self.seconds: float = options.seconds
        self.smoke: bool = options.smoke
        self.scratch = scratch
        self.stack = stack
        self.report = Report()
        load_core, self.core = cores()
        self.load = Load(scratch, load_core)
        if load_core is not None:
            os.sched_setaffinity(0, {load_core})  # this program, too, keeps out of the servers' way
        self.catalogue = Catalogue(20 if self.smoke else 100)
        self.questions = write_questions(scratch / "questions", questions_of(self.catalogue))

    def starter(self, catalogue: Catalogue) -> Starter:
        probe = query(f"{catalogue.name(0)}.service.consul", "A")
        return self.stack.enter_context(Starter(self.scratch, self.core, probe))

    def registry(self, *options: str, config: Mapping[str, object] | None = None) -> Registry:
        """A real Consul where there is one; for a moment's run the embedded agent will do.

        Args:
            options: of tools/get-consul.
            config: further keys of Consul's.
        """
        if not self.smoke:
            try:
                binary = servers.get("get-consul", *options)
                return self.stack.enter_context(servers.consul(binary, self.core, config or {}))
            except Absent as exc:
                if options:
                    raise
                self.report.notes.append(f"Consul: {exc}; the embedded agent is followed instead")
        return self.stack.enter_context(servers.embedded())

    def warm(self, server: Server, questions: Path, patience: float = 30.0) -> None:
        """Ask until one run got only right answers, twice as many as there are questions."""
        count = len(list(read_questions(questions)))
        seconds, deadline = 0.5, time.monotonic() + patience
        while True:
            outcome = self.load.run(server.address, server.pids, questions, seconds, window=16)
            # On a machine that is busy with other things a few are lost for no fault of the server's.
            if outcome.sound and outcome.good >= 2 * count:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{server.name} does not answer {count} questions: {outcome}")
            seconds = min(2 * seconds, 10.0)

    def full_load(self, server: Server, questions: Path) -> Outcome:
        """Ask as fast as answers come; anew, if the load or the server was kept from its core meanwhile."""
        for _ in range(_ATTEMPTS):
            outcome = self.load.run(server.address, server.pids, questions, self.seconds)
            if outcome.good and outcome.seconds < 1.2 * self.seconds:
                return outcome
        raise RuntimeError(f"{server.name} and its load do not get the time of this machine: {outcome}")

    # The comparison --------------------------------------------------------------------------------------

    def contenders(self, registry: Registry, starter: Starter) -> list[Contender]:
        """Start everybody, ours first; each knows every name before it is measured."""
        found: list[Server] = []

        def add(name: str, start: Callable[[], Server]) -> None:
            try:
                server = start()
            except Absent as exc:
                self.report.notes.append(f"{name}: {exc}")
            else:
                self.warm(server, self.questions)
                found.append(server)

        origin = starter.ours(registry.url, "origin", config=_HOUR)
        self.warm(origin, self.questions)
        add("unbound", lambda: starter.unbound(origin))
        add("dnsmasq", lambda: starter.dnsmasq(origin))
        starter.stop(origin)  # what caches has everything for an hour, and nothing follows beside ours
        add("miekg/dns", lambda: starter.miekg(self.catalogue))
        add("C server", starter.c_server)
        add("portcall", lambda: starter.ours(registry.url))
        if registry.server is not None:
            add("Consul", lambda: registry.server or _impossible())
        if not self.smoke:
            add("current Consul", self.current_consul)
        found.sort(key=lambda one: one.name != "portcall")
        return [Contender(one) for one in found]

    def current_consul(self) -> Server:
        registry = self.registry("--current")
        registry.fill(self.catalogue)
        return registry.server or _impossible()

    def compare(self, contenders: Sequence[Contender]) -> None:
        for _ in range(self.rounds):
            for one in random.sample(contenders, len(contenders)):
                server = one.server
                one.closed.append(self.full_load(server, self.questions))
        if not self.load.is_compiled:
            self.report.notes.append(
                "no C compiler: the load is a tenth of what it could be, without latencies"
            )
            return
        for rate in RATES:
            for _ in range(self.rounds):
                for one in random.sample(contenders, len(contenders)):
                    if rate > one.closed[-1].good / one.closed[-1].seconds * 2:
                        continue  # far beyond what it can do: only drops would be measured
                    outcome = self.load.run(
                        one.server.address, one.server.pids, self.questions, self.seconds, rate=rate
                    )
                    one.at_rate.setdefault(rate, []).append(outcome)

    def print_comparison(self, contenders: Sequence[Contender]) -> None:
        ours = contenders[0]
        print(
            f"{'server':<28}{'CPU us/query':>13}{'least-most':>13}{'ours is x':>10}{'least-most':>13}"
            + "".join(f"{f'p50 @{rate // 1000}k':>10}{f'p99 @{rate // 1000}k':>10}" for rate in RATES)
            + f"{'answers/s':>11}{'RSS MiB':>9}{'wrong':>7}{'lost':>6}"
        )
        for one in contenders:
            least, most = one.costs
            ratios = ratios_of(ours, one)
            latencies = "".join(
                f"{one.latency(rate, lambda o: o.p50_us):>10}{one.latency(rate, lambda o: o.p99_us):>10}"
                for rate in RATES
            )
            print(
                f"{one.server.name:<28}{one.cost:>13.2f}{f'{least:.2f}-{most:.2f}':>13}"
                f"{statistics.median(ratios):>10.2f}{f'{min(ratios):.2f}-{max(ratios):.2f}':>13}{latencies}"
                f"{statistics.median(o.per_second for o in one.closed):>11.0f}{one.server.rss_mib:>9.0f}"
                f"{sum(o.bad for o in one.closed):>7}{sum(o.lost for o in one.closed):>6}"
            )
        print()

    def judge(self, contenders: Sequence[Contender]) -> None:
        by_name = {one.server.name: one for one in contenders}
        ours = by_name["portcall"]
        limits = {
            "unbound": 1.0,
            "dnsmasq": 0.75,
            "minimal miekg/dns server": 0.5,
            "C, answers all alike": 2.0,
        }
        for name, limit in limits.items():
            if name in by_name:
                ratio = statistics.median(ratios_of(ours, by_name[name]))
                self.report.goal(f"CPU per query beside {name}", limit, ratio, " x")
            else:
                self.report.unknown(f"CPU per query beside {name}", "it is not here")
        for name, one in by_name.items():
            if name.startswith("Consul"):
                ratio = statistics.median(ratios_of(ours, one))
                self.report.goal(f"CPU per query beside {name}", round(1 / 12, 4), ratio, " x")
        unbound = by_name.get("unbound")
        answerer = by_name.get("C, answers all alike")
        for rate in RATES if unbound is not None else ():
            assert unbound is not None
            what = f"p99 at {rate:,} queries/s beside unbound"
            ratio = p99_beside(ours, unbound, rate)
            # What a server has that looks nothing up is the machine's part.
            floor = answerer and p99_beside(answerer, unbound, rate)
            why = f"a C server that looks nothing up has {floor:.3g} x" if floor else ""
            if ratio is not None:
                self.report.goal(what, 1.0, ratio, " x", why)
            else:
                self.report.unknown(what, "in no round did both get all the load: the machine is busy")

    # Other costs -----------------------------------------------------------------------------------------

    def forwarding(self, registry: Registry, starter: Starter, ours: Contender) -> None:
        """A miss that an upstream answers, and a name that is in the cache."""
        what = "CPU that forwarding a miss adds"
        try:
            upstream = starter.c_server()
        except Absent as exc:
            self.report.unknown(what, str(exc))
            return
        resolver = starter.ours(
            registry.url, "forwarding", options=["--upstream", f"{servers.HOST}:{upstream.port}"]
        )
        self.warm(resolver, self.questions)
        count = _FORWARDED // 20 if self.smoke else _FORWARDED
        misses, hits, known = [], [], []
        for turn in range(self.rounds):
            fresh = [query(f"n{number}.r{turn}.example.com", "A") for number in range(count)]
            path = write_questions(self.scratch / "misses", fresh)
            # Ended by the number of names, not by time: asked twice, a name would be a hit.
            seconds = min(self.seconds, count / 20_000)
            misses.append(
                self.load.run(resolver.address, resolver.pids, path, seconds, window=_WINDOW_FORWARDING)
            )
            kept = [query(f"kept{number}.example.com", "A") for number in range(2 * self.catalogue.services)]
            path = write_questions(self.scratch / "kept", kept)
            self.warm(resolver, path)
            for outcomes, asked in ((hits, path), (known, self.questions)):
                outcomes.append(self.full_load(resolver, asked))
        if any(one.good > count for one in misses):
            self.report.notes.append(
                "forwarding: some names were asked twice; the cost of a miss is understated"
            )
        hit, name, miss = (
            statistics.median(o.cpu_us_per_query for o in all_of) for all_of in (hits, known, misses)
        )
        lost = sum(one.lost for one in misses)
        self.report.notes.append(
            f"forwarding: {miss:.0f} us of CPU for a miss ({lost} lost), {hit:.2f} for a cached name, "
            f"{name:.2f} for a service name"
        )
        self.report.goal(what, 150, miss - hit, " us")
        ratios = [a.cpu_us_per_query / b.cpu_us_per_query for a, b in zip(hits, known, strict=True)]
        self.report.goal(
            "a cached upstream name beside a service name", 1.05, statistics.median(ratios), " x"
        )
        starter.stop(resolver)
        starter.stop(upstream)

    def propagation(self, registry: Registry, ours: Server) -> None:
        """From the agent's acknowledgement of a change to the first answer that shows it."""
        changes, pause = (10, 0.05) if self.smoke else (200, 0.1)
        name = self.catalogue.name(0)
        request = dns.message.make_query(f"{name}.service.consul", "A", use_edns=0, payload=4096)
        entry = {**self.catalogue.entry(0, 0)}
        service = dict(entry["Service"]) if isinstance(entry["Service"], dict) else {}
        ended = threading.Event()

        def background() -> None:
            while not ended.is_set():
                self.load.run(ours.address, ours.pids, self.questions, 1.0, rate=1_000, sockets=4)

        thread = threading.Thread(target=background)
        thread.start()
        took = []
        try:
            for number in range(changes):
                address = f"10.99.{number >> 8}.{number & 255}"
                registry.put("/v1/catalog/register", {**entry, "Service": {**service, "Address": address}})
                acknowledged = time.perf_counter()
                while address not in addresses(dns.query.udp(request, servers.HOST, 10, ours.port)):
                    if time.perf_counter() - acknowledged > 10:
                        raise RuntimeError(f"{address} of {name} is not answered after 10 s")
                took.append((time.perf_counter() - acknowledged) * 1000)
                time.sleep(pause)
        finally:
            ended.set()
            thread.join()
            registry.put("/v1/catalog/register", entry)
        took.sort()
        p50, p99 = statistics.median(took), took[int(len(took) * 0.99)]
        self.report.notes.append(f"propagation of {changes} changes: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        self.report.goal("propagation p99 under 1,000 queries/s", 50, p99, " ms")

    def workers(self, registry: Registry, starter: Starter) -> None:
        what = "answers/s of 2 workers beside 1"
        if servers.available < 3:
            self.report.unknown(
                what, f"the workers need two cores and the load a third; here are {servers.available}"
            )
            return
        per_second = []
        for count in (1, 2):
            server = starter.ours(
                registry.url, f"{count} workers", options=["--workers", str(count)], pinned=False
            )
            os.sched_setaffinity(server.pids[0], set(servers.all_cores[1:]))
            self.warm(server, self.questions)
            outcomes = [
                self.load.run(
                    server.address, server.pids, self.questions, self.seconds, window=512, sockets=64
                )
                for _ in range(self.rounds)
            ]
            per_second.append(statistics.median(one.per_second for one in outcomes))
            starter.stop(server)
        self.report.goal(what, 1.8, per_second[1] / per_second[0], " x", least=True)

    def large(self) -> None:
        """10,000 services of three instances."""
        catalogue = Catalogue(200 if self.smoke else 10_000)
        what = f"{catalogue.services:,} services x {catalogue.instances}"
        registry = self.registry(config=_HOUR)
        registry.fill(catalogue)
        starter = self.starter(catalogue)
        path = write_questions(self.scratch / "large", questions_of(catalogue))
        patience = 20.0 if self.smoke else _LARGE_PATIENCE
        everybody, versus = [], f"CPU per query beside unbound at {what}"
        try:
            origin = registry.server or starter.ours(registry.url, "origin of all", config=_HOUR)
            peer = Contender(starter.unbound(origin))
            self.warm(peer.server, path, patience)
            starter.stop(origin)
            everybody.append(peer)
        except (Absent, RuntimeError) as exc:
            self.report.unknown(versus, f"unbound: {exc}")
        ours = Contender(starter.ours(registry.url, "ours of all"))
        try:
            self.warm(ours.server, path, patience)
            everybody.append(ours)
        except RuntimeError as exc:
            self.report.unknown(versus, str(exc))
        idle, began = cpu_ns(ours.server.pids), time.monotonic()
        time.sleep(max(1.0, self.seconds))
        background = (cpu_ns(ours.server.pids) - idle) / (time.monotonic() - began) / 1e7
        self.report.notes.append(f"{what}: {background:.0f} % of a core while nobody asks")
        if ours in everybody:
            for _ in range(self.rounds):
                for one in everybody:
                    one.closed.append(self.full_load(one.server, path))
        why = "every rotation of each answer is kept ready, and every name that is asked for is followed"
        self.report.goal(f"RSS at {what}, after that load", 120, ours.server.rss_mib, " MiB", why)
        if ours not in everybody:
            return
        least, most = ours.costs
        self.report.notes.append(
            f"{what}: {ours.cost:.2f} us ({least:.2f}-{most:.2f}) of CPU for a query, "
            f"{sum(o.bad for o in ours.closed)} wrong, {sum(o.lost for o in ours.closed)} lost"
        )
        if len(everybody) > 1:
            ratio = statistics.median(ratios_of(ours, peer))
            self.report.goal(versus, 1.0, ratio, " x")


def ratios_of(ours: Contender, other: Contender) -> list[float]:
    return [
        mine.cpu_us_per_query / theirs.cpu_us_per_query
        for mine, theirs in zip(ours.closed, other.closed, strict=True)
    ]


def p99_beside(one: Contender, other: Contender, rate: int) -> float | None:
    """The median over the rounds in which both got all the load; None when there is no such round."""
    rounds = zip(one.at_rate.get(rate, []), other.at_rate.get(rate, []), strict=False)
    ratios = [a.p99_us / b.p99_us for a, b in rounds if a.sound and b.sound]
    return statistics.median(ratios) if ratios else None


def addresses(reply: dns.message.Message) -> set[str]:
    return {str(record) for rrset in reply.answer for record in rrset}


def _impossible() -> Server:
    raise AssertionError("a real Consul has a DNS server")


def print_goals(report: Report) -> None:
    for what, limit, measured, verdict in report.goals:
        print(f"{what:<58}{limit:>12}{measured:>12}  {verdict}")
    print()
    for note in report.notes:
        print(f"- {note}")


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--smoke", action="store_true", help="a moment of each, to see that it runs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw CPU per query into this PNG")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.smoke:
        options.rounds, options.seconds = 1, 0.3
    if not Path("/proc/self/statm").exists():
        print("bench_dns: CPU time of other processes is read as Linux tells it; there is none of it here")
        return 0

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="portcall-bench-")))
        bench = Bench(options, scratch, stack)
        registry = bench.registry()
        registry.fill(bench.catalogue)
        starter = bench.starter(bench.catalogue)
        contenders = bench.contenders(registry, starter)
        measured = (
            f"{bench.catalogue.services} services x {bench.catalogue.instances} in {registry.name}, "
            f"A and SRV, {bench.rounds} rounds of {bench.seconds:g} s"
        )
        machine = (
            f"Python {platform.python_version()}, Linux {platform.release().partition('-')[0]}, "
            f"{servers.available} cores"
        )
        print(f"{measured}, {machine}, load average {os.getloadavg()[0]:.1f}\n")
        bench.compare(contenders)
        bench.print_comparison(contenders)
        bench.judge(contenders)
        bench.forwarding(registry, starter, contenders[0])
        bench.workers(registry, starter)
        bench.propagation(registry, contenders[0].server)
        for one in contenders:
            starter.stop(one.server)
        bench.large()
        print_goals(bench.report)
        if options.plot is not None:
            from benchmarks.nameservers.plot import plot

            costs = [(one.server.name, one.cost, *one.costs) for one in contenders]
            plot(costs, f"{measured}\n{machine}", options.plot)
            print(f"\n{options.plot} shows it")
    return 0


if __name__ == "__main__":
    sys.exit(main())

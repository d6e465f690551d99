#!/usr/bin/env python3
"""What the integrations promise, measured: the price of balancing a request, and how long an instance's
connections outlive it.

    benchmarks/bench_integrations.py [--smoke] [--rounds N]

Three servers in processes of their own, a real Consul agent (tools/get-consul), one client of each library.

balanced  requests a second to the service, one after another, by the median of their times
alone     as many by the same library to one server by its address; they take turns, request by request, so
          that a noisy machine is noisy for both
price     microseconds of a balanced request beyond one of the library alone
spread    the largest distance of a server's share from an equal one, in percent of that
gone      milliseconds from asking Consul to deregister an instance until no connection to it is established,
          with no request meanwhile
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing

from promises import Promise, print_promises

from discovery import Client, Config
from discovery.backends import open_backend
from discovery.integrations.grpc import channel
from tests.discovery.integrations.fleet import Fleet, Server, connections_to
from tests.discovery.integrations.libraries import LIBRARIES
from tests.tools import ConsulAgent, wait_until

SPREAD = 2.0  # percent
GONE = 100.0  # ms
LOOK = 0.005  # s between two looks: who looks all the time keeps the interpreter from those who close
SERVICE = "http://web.service.consul/"
Ask = Callable[[], int]
"""Sends a request and returns the port of the server that answered."""


def microseconds(ask: Ask) -> float:
    start = time.perf_counter_ns()
    ask()
    return (time.perf_counter_ns() - start) / 1000


def price(balanced: Ask, plain: Ask, rounds: int) -> tuple[float, float]:
    """Return the medians of both, in microseconds."""
    samples = [(microseconds(balanced), microseconds(plain)) for _ in range(rounds)]
    return statistics.median(s[0] for s in samples), statistics.median(s[1] for s in samples)


def spread(balanced: Ask, rounds: int) -> float:
    shares = Counter(balanced() for _ in range(rounds - rounds % 3))
    equal = shares.total() / 3
    return 100 * max(abs(count - equal) / equal for count in (*shares.values(), *[0] * (3 - len(shares))))


def close(balanced: Ask, fleet: Fleet, port: int, rounds: int) -> list[float]:
    """Let the server at *port* leave and come back, *rounds* times; return the times in milliseconds."""
    times = []
    for _ in range(rounds):
        wait_until(lambda: balanced() == port, 30, interval=0, message="it is back in use")
        start = time.perf_counter()
        fleet.deregister(port)
        wait_until(lambda: not connections_to(port), 30, interval=LOOK, message="its connections are closed")
        times.append(1000 * (time.perf_counter() - start))
        fleet.register(port)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a moment only, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3000, metavar="N", help="requests of each kind (3000)")
    options = parser.parse_args()
    rounds = 60 if options.smoke else options.rounds
    leavings = 3 if options.smoke else 30

    titles = f"{'balanced/s':>11}{'alone/s':>9}{'price us':>10}{'spread %':>10}{'gone p50':>10}{'max ms':>8}"
    print(f"{'':10}{titles}")
    unequal, late = [], []
    with ExitStack() as stack:
        agent = stack.enter_context(ConsulAgent())
        backend = stack.enter_context(closing(open_backend(agent.uri, Config())))
        client = stack.enter_context(Client(backend=backend))
        for name in (*LIBRARIES, "grpc"):
            with ExitStack() as own:
                script = "grpc_server.py" if name == "grpc" else "server.py"
                servers = [own.enter_context(Server(script=script)) for _ in range(3)]
                fleet = Fleet(backend)
                for server in servers:
                    fleet.register(server.port)
                    own.callback(fleet.deregister, server.port)
                wait_until(lambda: len(client.lookup_all("web")) == 3)
                balanced, plain = _contenders(name, client, servers[1].port, own)
                wait_until(lambda ask=balanced: len({ask() for _ in range(3)}) == 3, message="all connected")
                cost, alone = price(balanced, plain, rounds)
                unequal.append(spread(balanced, rounds))
                times = close(balanced, fleet, servers[0].port, leavings)
                late.append(statistics.median(times))
                print(
                    f"{name:10}{1e6 / cost:>11,.0f}{1e6 / alone:>9,.0f}{cost - alone:>10,.0f}"
                    f"{unequal[-1]:>10.2f}{late[-1]:>10.1f}{max(times):>8.1f}"
                )
    print()
    print_promises(
        Promise("integrations, spread over three servers", max(unequal), SPREAD, "%"),
        Promise("integrations, deregistered -> connections gone", max(late), GONE, "ms"),
    )


def _contenders(name: str, client: Client, port: int, stack: ExitStack) -> tuple[Ask, Ask]:
    """Return how to ask the service, and how to ask the server at *port* with the library alone."""
    if name == "grpc":
        import grpc

        many = stack.enter_context(channel("web", client=client)).unary_unary("/test.Echo/Who")
        one = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}")).unary_unary("/test.Echo/Who")
        return lambda: int(many(b"")), lambda: int(one(b""))
    balanced, alone = LIBRARIES[name](client=client), LIBRARIES[name](client=client)
    stack.callback(balanced.close)
    stack.callback(alone.close)
    return (
        lambda: int(balanced.request("GET", SERVICE)["port"]),
        lambda: int(alone.request("GET", f"http://127.0.0.1:{port}/")["port"]),
    )


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What the client does when nobody calls it: how soon it sees a change, what it keeps, what it costs.

    benchmarks/bench_client.py [--smoke] [--rounds N] [SECTION ...]

Against one real Consul agent (tools/get-consul). Peers that are not installed are named and left out.

change   milliseconds from the start of a registration until the new instance is seen, and of a deregistration
         until it is gone, for one who waits with a blocking query: the client, py-consul, and http.client
         with nothing around it, which is what Consul and this machine allow. They take turns.
memory   megabytes that stay allocated for a service of 10,000 instances on 100 nodes.
idle     what a client costs that follows ten services to which nothing happens.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from promises import INSTALLED, Promise, Run, child, main, percentile

import discovery
from discovery.backends import Backend, open_backend
from discovery.model import Registration, ServiceID, ServiceName
from tests.discovery.integrations.fleet import connections_to
from tests.tools import ConsulAgent

NAME = "web"
STAY = frozenset(range(5000, 5005))  # ports of the instances that neither come nor go
MANY, NODES = 10_000, 100
SERVICES = 10  # that the idle client follows


# --- change ---------------------------------------------------------------------------------------------

AGENT = """
import sys
from discovery.agent import Agent
with Agent(http=("127.0.0.1", 0)) as agent:
    print(agent.uri, flush=True)
    sys.stdin.read()
"""


class Seen:
    """When each set of ports was first seen, as told by whoever follows the service."""

    def __init__(self) -> None:
        self._at: dict[frozenset[int], float] = {}
        self._news = threading.Condition()

    def tell(self, ports: Iterable[int]) -> None:
        now = time.perf_counter()
        with self._news:
            self._at[frozenset(ports)] = now
            self._news.notify_all()

    def when(self, ports: frozenset[int]) -> float:
        """Wait until just these *ports* have been seen, and return when that was."""
        with self._news:
            if not self._news.wait_for(lambda: ports in self._at, 30):
                raise TimeoutError(f"a change to {sorted(ports)} was not seen within 30 s")
            return self._at.pop(ports)


@contextmanager
def follow_with_discovery(uri: str, seen: Seen) -> Iterator[None]:
    with discovery.Client(backend=open_backend(uri, discovery.Config())) as client:
        client.lookup(NAME)

        def changed(snapshot: discovery.Snapshot) -> None:
            seen.tell(instance.port for instance in snapshot)
            if set(client.lookup_all(NAME)) != set(snapshot):
                raise AssertionError("a lookup does not see what a watch has told")

        with client.watch(NAME) as watch:
            watch.on_change(changed)
            yield


@contextmanager
def follow_with_thread(seen: Seen, read: Callable[[str], tuple[str, Any]]) -> Iterator[None]:
    """Call *read* with an index, again and again, in a thread; it returns the next index and the rows."""
    ended = threading.Event()

    def work() -> None:
        index = "0"
        while not ended.is_set():
            index, rows = read(index)
            seen.tell(row["Service"]["Port"] for row in rows)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def follow_with_socket(uri: str, seen: Seen) -> Any:
    connection = http.client.HTTPConnection(uri.partition("://")[2])

    def read(index: str) -> tuple[str, Any]:
        connection.request("GET", f"/v1/health/service/{NAME}?index={index}&wait=1s")
        response = connection.getresponse()
        return response.headers["X-Consul-Index"], json.load(response)

    return follow_with_thread(seen, read)


def follow_with_consul(uri: str, seen: Seen) -> Any:
    import consul

    host, _, port = uri.partition("://")[2].partition(":")
    peer = consul.Consul(host=host, port=int(port))
    return follow_with_thread(
        seen, lambda index: peer.health.service(NAME, index=None if index == "0" else index, wait="1s")
    )


@contextmanager
def embedded_agent() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", AGENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


def change(run: Run) -> Iterator[Promise]:
    followers: dict[str, Callable[[str, Seen], Any]] = {
        "discovery": follow_with_discovery,
        "http.client, bare": follow_with_socket,
    }
    if "consul" in INSTALLED:
        followers["py-consul"] = follow_with_consul
    print(f"{'from a change until it is seen':<40}{'p50 ms':>9}{'p99 ms':>9}{'gone: p50':>12}{'p99 ms':>9}")
    with embedded_agent() as embedded:
        for where, uri in {"Consul": run.agent.uri, "embedded agent": embedded}.items():
            came: dict[str, list[float]] = {name: [] for name in followers}
            went: dict[str, list[float]] = {name: [] for name in followers}
            with closing(open_backend(uri, discovery.Config())) as registry:
                for port in STAY:
                    registry.register(registration(port))
                for _ in range(run.rounds):
                    for name in random.sample(list(followers), len(followers)):
                        seen = Seen()
                        with followers[name](uri, seen):
                            seen.when(STAY)
                            for _ in range(3 if run.smoke else 20):
                                let_one_come_and_go(registry, seen, came[name], went[name])
            for name in followers:
                print(
                    f"{f'{where}: {name}':<40}"
                    f"{statistics.median(came[name]):>9.2f}{percentile(came[name], 99):>9.2f}"
                    f"{statistics.median(went[name]):>12.2f}{percentile(went[name], 99):>9.2f}"
                )
            late = percentile(came["discovery"], 99)
            yield Promise(f"registration -> visible, {where}, p99", late, 15, "ms")


def registration(port: int) -> Registration:
    return Registration(ServiceID(f"{NAME}-{port}"), ServiceName(NAME), port)


def let_one_come_and_go(registry: Backend, seen: Seen, came: list[float], went: list[float]) -> None:
    other = registration(6000)
    for ports, act, times in (
        (STAY | {6000}, lambda: registry.register(other), came),
        (STAY, lambda: registry.deregister(other.id), went),
    ):
        time.sleep(random.choice((0, random.uniform(0.0, 0.05))))  # at once after the last one, or later
        begun = time.perf_counter()
        act()
        times.append((seen.when(ports) - begun) * 1000)


# --- memory ---------------------------------------------------------------------------------------------

KEPT = """
import gc, os, sys, time, tracemalloc
who, name = sys.argv[1:]
if who == "discovery":
    import discovery
    client = discovery.Client(timeout=120.0, dns=())  # a slow agent would have dnspython loaded
    look = client.lookup_all
else:
    import consul
    host, _, port = os.environ["CONSUL_HTTP_ADDR"].partition(":")
    client = consul.Consul(host=host, port=int(port))
    look = lambda name: client.health.service(name)[1]
look("consul")  # all is loaded and connected
gc.collect()
tracemalloc.start(1)
found = look(name)
kept, before = 1, 0
while kept != before:  # it is being written down in the background
    time.sleep(1)
    gc.collect()
    kept, before = tracemalloc.get_traced_memory()[0] // 10_000, kept
print(len(found), kept / 100)
"""


def fill(agent: ConsulAgent, name: str, count: int, *, checked: bool) -> None:
    """Have *count* instances of *name* on NODES nodes, each node with a check."""
    operations: list[dict[str, Any]] = []
    for n in range(NODES):
        node = f"node-{n:03}"
        lan = dict.fromkeys(("lan", "lan_ipv4", "wan", "wan_ipv4"), f"10.1.0.{n}")
        row: dict[str, Any] = {"Node": node, "Address": f"10.1.0.{n}", "TaggedAddresses": lan}
        operations.append({"Node": {"Verb": "set", "Node": row}})
        check = {"Node": node, "CheckID": "alive", "Name": "Serf Health Status", "Status": "passing"}
        check["Output"] = "Agent alive and reachable"
        operations.append({"Check": {"Verb": "set", "Check": check}})
    for n in range(count):
        node, host, port = f"node-{n % NODES:03}", f"10.2.{n >> 8}.{n & 255}", 20000 + n
        own = {"Address": host, "Port": port}
        service: dict[str, Any] = {
            "ID": f"{node}:{name}-{n}:8080",
            "Service": name,
            "Tags": ["v1", "http"],
            "Meta": {"owner": node},
            "TaggedAddresses": {"lan_ipv4": own, "wan_ipv4": own},  # as an agent fills them in
            **own,
        }
        operations.append({"Service": {"Verb": "set", "Node": node, "Service": service}})
        if checked:
            check = {
                "Node": node,
                "CheckID": f"service:{service['ID']}",
                "Name": f"Service '{name}' check",
                "Status": "passing",
                "Output": f"HTTP GET http://{host}:{port}/health: 200 OK Output: ok",
                "ServiceID": service["ID"],
                "ServiceName": name,
            }
            operations.append({"Check": {"Verb": "set", "Check": check}})
    for at in range(0, len(operations), 64):  # Consul's limit for one transaction
        agent.request("PUT", "/v1/txn", operations[at : at + 64])


def memory(run: Run) -> Iterator[Promise]:
    count = 1000 if run.smoke else MANY
    print(f"{f'kept of {count:,} instances':<40}{'MB':>9}")
    for name, checks in (("plain", "checks of nodes"), ("checked", "and a check of its own for each")):
        fill(run.agent, name, count, checked=name == "checked")
        for who in ("discovery", *(["py-consul"] if "consul" in INSTALLED else [])):
            found, kept = child(KEPT, who, name)
            if int(found) != count:
                raise AssertionError(f"{who} sees {found} of {count} instances")
            print(f"{f'{who}, {checks}':<40}{float(kept):>9.2f}")
            if (who, name, count) == ("discovery", "plain", MANY):
                yield Promise(f"{count:,} instances, kept", float(kept), 5, "MB")


# --- idle -----------------------------------------------------------------------------------------------


def idle(run: Run) -> Iterator[Promise]:
    names = [f"idle-{n}" for n in range(SERVICES)]
    for name in names:
        run.agent.request("PUT", "/v1/agent/service/register", {"Name": name, "Port": 1})
    threads, connections = threading.active_count(), connections_to(run.agent.http_port)
    seconds = 1.0 if run.smoke else 10.0
    with discovery.Client() as client:
        for name in names:
            client.lookup(name)
        begun = time.process_time()
        time.sleep(seconds)
        busy = (time.process_time() - begun) / seconds
        threads = threading.active_count() - threads
        connections = connections_to(run.agent.http_port) - connections
    print(f"{f'idle for {seconds:g} s, following {SERVICES} services':<40}")
    print(f"{'processor, of one core':<40}{100 * busy:>9.2f} %")
    print(f"{'threads':<40}{threads:>9}")
    print(f"{'connections':<40}{connections:>9}")
    yield Promise(f"idle, following {SERVICES} services, of one core", 100 * busy, 1, "%")


if __name__ == "__main__":
    main(__doc__ or "", {"change": change, "memory": memory, "idle": idle})

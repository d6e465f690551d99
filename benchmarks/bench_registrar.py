#!/usr/bin/env python3
"""How soon the registrar tells Consul, and what it costs: beside its goals, Consul alone, and Registrator.

    benchmarks/bench_registrar.py [--smoke] [--containers N] [--rounds N] [--events N]

1. From Docker's own event to what Consul answers: a container is started and stopped again and again, with a
   real dockerd in namespaces of its own (root), and every registrar beside the others, each with a Consul of
   its own. Not root: a fake engine behind Docker's API.
2. Many containers at once, behind a fake Docker API on a unix socket: the first sync from the start of the
   process, looks at what has not changed, memory. The same registrations sent to Consul alone, by plain
   connections that do nothing else, show how much of the time is Consul's.

Registrator is $REGISTRATOR_BIN, else `registrator` on PATH, else built with Go; what is not there is named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from discovery.agent import Agent
from discovery.backends.consul import codec
from registrar.desired import desire
from registrar.docker import Docker
from registrar.rules import Rules
from tests.registrar.build import HOST
from tests.registrar.dockerd import IMAGE, OBEDIENT, Dockerd
from tests.registrar.process import RegistrarProcess, processor_seconds
from tests.registrar.served_docker import ServedDocker
from tests.tools import ConsulAgent, consul_bin, free_port, wait_until

PEER = "github.com/fayrus/registrator@v9.2.0"
PATIENCE = 120.0  # s; Consul alone takes two for a thousand
CONNECTIONS = (1, 4, 16)
MS = 1e6  # ns

_open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


# --- what is asked and what is measured -----------------------------------------------------------------


class Registry(Protocol):
    """A Consul agent, or the embedded one where no Consul is found."""

    @property
    def uri(self) -> str: ...


@contextmanager
def registry() -> Iterator[Any]:
    try:
        consul_bin()
    except FileNotFoundError:
        with Agent(http=("127.0.0.1", free_port())) as agent:
            yield agent
    else:
        # A dev agent logs at DEBUG: at every registration a line for each service that is in step.
        with ConsulAgent(config={"log_level": "info"}) as agent:
            yield agent


def address_of(agent: Registry) -> str:
    return agent.uri.partition("://")[2]


def ask(agent: Registry, path: str, timeout: float = 30.0) -> tuple[Any, int]:
    """The JSON at *path*, and its index for a blocking query."""
    with _open_url(f"http://{address_of(agent)}/v1/{path}", timeout=timeout) as reply:
        return json.loads(reply.read()), int(reply.headers["X-Consul-Index"] or 0)


class Watcher:
    """Notes when a container came into the answers for a service, and when it went."""

    def __init__(self, agent: Registry, service: str) -> None:
        self._agent, self._service = agent, service
        self._changed = threading.Condition()
        self._closed = False
        self._present = False
        self._since = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        index = 0
        while not self._closed:
            path = f"health/service/{self._service}?passing&index={index}&wait=2s"
            rows, index = ask(self._agent, path)
            now = time.time_ns()
            with self._changed:
                if bool(rows) != self._present:
                    self._present, self._since = bool(rows), now
                    self._changed.notify_all()

    def await_(self, present: bool) -> int:
        """Wait until it is so; the moment when it became so, in nanoseconds since the epoch."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._present is present, PATIENCE), self._agent.uri
            return self._since

    def close(self) -> None:
        self._closed = True
        self._thread.join()


@dataclass
class Lags:
    """Milliseconds from an event to the answer that shows it."""

    start: list[float] = field(default_factory=list)
    stop: list[float] = field(default_factory=list)


def at(samples: Sequence[float], quantile: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * quantile))]


def row(*cells: object) -> None:
    first, *others = cells
    print(f"{first!s:<44}" + "".join(f"{cell!s:>12}" for cell in others).rstrip())


def against(value: float, goal: float, unit: str) -> tuple[str, str, str]:
    return f"{value:.1f} {unit}", f"{goal:g} {unit}", "met" if value <= goal else "missed"


# --- engines --------------------------------------------------------------------------------------------


class RealEngine:
    """One container of a real dockerd, started and stopped."""

    kind = "real dockerd"

    def __init__(self, dockerd: Dockerd) -> None:
        self.env = dockerd.env
        self.service = IMAGE
        command = ["/bin/sh", "-c", OBEDIENT[-1]]
        self._container = dockerd.client.containers.create(
            IMAGE, name="web", command=command, publish_all_ports=True
        )
        self._events = dockerd.client.events(decode=True)

    def start(self) -> int:
        self._container.start()
        return self._moment("start")

    def stop(self) -> int:
        self._container.stop()
        return self._moment("kill")

    def _moment(self, action: str) -> int:
        """When Docker says that it did that; its clock is ours."""
        return next(int(event["timeNano"]) for event in self._events if event.get("Action") == action)

    def close(self) -> None:
        self._events.close()


class FakeEngine:
    """The same with the fake engine behind a socket."""

    kind = "fake Docker API"

    def __init__(self, docker: ServedDocker) -> None:
        self.env = {"DOCKER_HOST": docker.url}
        self.service = "nginx"
        self._docker = docker
        docker.create("web", publish=["80/tcp"])

    def start(self) -> int:
        moment = time.time_ns()
        self._docker.start("web")
        return moment

    def stop(self) -> int:
        moment = time.time_ns()
        self._docker.begin_stop("web")
        self._docker.end_stop("web")
        return moment

    def close(self) -> None:
        pass


@contextmanager
def engine(real: bool) -> Iterator[Any]:
    with ExitStack() as stack:
        made: Any
        if real:
            made = RealEngine(stack.enter_context(Dockerd()))
        else:
            made = FakeEngine(stack.enter_context(ServedDocker()))
        with closing(made):
            yield made


def without_dockerd() -> str:
    """Say why there can be no real dockerd here; empty where there can."""
    if os.geteuid() != 0:
        return "a real dockerd needs root"
    absent = [name for name in ("dockerd", "unshare", "ip", "busybox") if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed, so no real dockerd" if absent else ""


# --- registrars -----------------------------------------------------------------------------------------


def find_peer() -> tuple[str, str]:
    """Return Registrator's executable, or why there is none."""
    given = os.environ.get("REGISTRATOR_BIN") or shutil.which("registrator")
    if given:
        return given, ""
    if shutil.which("go") is None:
        return "", "no registrator on PATH, and no Go to build one"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portcall" / "peers"
    built = cache / "registrator"
    if not built.exists():
        done = subprocess.run(
            ["go", "install", PEER],
            env={**os.environ, "GOBIN": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = " ".join(line.strip() for line in done.stderr.strip().splitlines()[-2:])
            return "", f"go install {PEER}: {said.rpartition(': reading ')[2]}"
    return str(built), ""


@contextmanager
def portcall(agent: Registry, env: dict[str, str]) -> Iterator[None]:
    with RegistrarProcess(agent.uri, env=env) as process:
        wait_until(lambda: process.metric("surveys_total"), PATIENCE, message="portcall has looked around")
        yield


@contextmanager
def peer(binary: str, agent: Registry, env: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [binary, "-ip", "127.0.0.1", agent.uri],
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:  # it says so when it has subscribed
            if "Listening for Docker events" in line:
                break
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield
    finally:
        process.kill()
        process.wait()


# --- 1. latency -----------------------------------------------------------------------------------------


def measure_latency(events: int, real: bool, binary: str) -> tuple[str, dict[str, Lags]]:
    lags = {"portcall": Lags()}
    with ExitStack() as stack:
        docker = stack.enter_context(engine(real))
        agents = {"portcall": stack.enter_context(registry())}
        stack.enter_context(portcall(agents["portcall"], docker.env))
        if binary:
            lags["Registrator"] = Lags()
            agents["Registrator"] = stack.enter_context(registry())
            stack.enter_context(peer(binary, agents["Registrator"], docker.env))
        watchers = {
            name: stack.enter_context(closing(Watcher(agent, docker.service)))
            for name, agent in agents.items()
        }
        for turn in range(events + 1):
            for present, act in ((True, docker.start), (False, docker.stop)):
                moment = act()
                for name, watcher in watchers.items():
                    lag = (watcher.await_(present) - moment) / MS
                    if turn:  # the first is warming up
                        (lags[name].start if present else lags[name].stop).append(lag)
        return docker.kind, lags


# --- 2. many --------------------------------------------------------------------------------------------


@dataclass
class Many:
    """What one round with many containers came to."""

    seconds: float
    """From the start of the process until Consul's catalogue has them all."""
    processor: float
    """Seconds that the registrar used for it, its own start included."""
    consul: float
    """Seconds that Consul used for it; 0 for the embedded agent, which is in this process."""
    look: float
    """Milliseconds of processor time for a look at everything when nothing has changed."""
    writes: float
    """That these looks made."""
    memory: float
    """MiB, resident, at the end."""


def filled(count: int) -> ServedDocker:
    docker = ServedDocker()
    for number in range(count):
        docker.run(f"web{number}", publish=["80/tcp"], env={"SERVICE_TAGS": "a,b"})
    return docker


def await_catalogue(agent: Registry, count: int) -> None:
    wait_until(
        lambda: len(ask(agent, "catalog/service/nginx")[0]) == count, PATIENCE, message=f"Consul has {count}"
    )


def measure_many(count: int, looks: int) -> Many:
    with registry() as agent, filled(count) as docker:
        consul_pid = agent._process.pid if isinstance(agent, ConsulAgent) else 0

        def consul() -> float:
            return processor_seconds(consul_pid) if consul_pid else 0.0

        began, before = time.monotonic(), consul()
        with RegistrarProcess(agent.uri, env={"DOCKER_HOST": docker.url}) as process:
            # Its log first: asking for all of them all the time would slow Consul or the registrar down.
            wait_until(lambda: process.log.count(" registered ") == count, PATIENCE, interval=0.05)
            await_catalogue(agent, count)
            seconds = time.monotonic() - began
            used, consul_used = processor_seconds(process.pid), consul() - before

            surveys = settled(process)
            writes, used_before = written(process), processor_seconds(process.pid)
            for number in range(looks):
                process.look()
                wait_until(lambda: process.metric("surveys_total") > surveys + number, PATIENCE)  # noqa: B023
            look = (processor_seconds(process.pid) - used_before) / looks * 1000
            made = process.metric("surveys_total") - surveys
            return Many(
                seconds,
                used,
                consul_used,
                look * looks / made,
                written(process) - writes,
                process.memory() / 2**20,
            )


def written(process: RegistrarProcess) -> float:
    return sum(process.metric("writes_total", f'kind="{kind}"') for kind in ("register", "deregister"))


def settled(process: RegistrarProcess) -> float:
    """Wait until it has stopped looking around for itself; how often it has looked by then."""
    last = [process.metric("surveys_total"), time.monotonic()]

    def quiet() -> bool:
        now = process.metric("surveys_total")
        if now != last[0]:
            last[:] = [now, time.monotonic()]
        return time.monotonic() - last[1] > 2.0

    wait_until(quiet, PATIENCE)
    return last[0]


def bodies(docker: ServedDocker) -> list[bytes]:
    """What the registrar sends for each container."""
    with docker, closing(Docker({"DOCKER_HOST": docker.url})) as engine:
        engine.connect()
        containers = [engine.inspect(summary.id) for summary in engine.list()]
    return [
        json.dumps(codec.registration_to_json(registration)).encode()
        for container in containers
        if container
        for registration in desire(container, Rules(), HOST, previous=(), now=0).registrations
    ]


def measure_alone(sent: Sequence[bytes], connections: int) -> tuple[float, float]:
    """Send *sent* over plain connections; seconds until the catalogue has them, and Consul's own."""
    with registry() as agent:
        consul_pid = agent._process.pid if isinstance(agent, ConsulAgent) else 0
        before = processor_seconds(consul_pid) if consul_pid else 0.0
        left = iter(sent)
        lock = threading.Lock()
        host, _, port = address_of(agent).rpartition(":")

        def send() -> None:
            with socket.create_connection((host, int(port))) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while True:
                    with lock:
                        body = next(left, None)
                    if body is None:
                        return
                    target = "/v1/agent/service/register?replace-existing-checks=true"
                    head = f"PUT {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
                    sock.sendall(head.encode() + body)
                    reply = b""
                    while b"\r\n\r\n" not in reply:
                        reply += sock.recv(65536)
                    assert b" 200 " in reply.partition(b"\r\n")[0], reply

        began = time.monotonic()
        threads = [threading.Thread(target=send) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        await_catalogue(agent, len(sent))
        seconds = time.monotonic() - began
        return seconds, processor_seconds(consul_pid) - before if consul_pid else 0.0


# --- the tables -----------------------------------------------------------------------------------------


def show_latency(events: int, real: bool, binary: str) -> None:
    kind, lags = measure_latency(events, real, binary)
    print(f"\nfrom Docker's event to what Consul answers ({kind}, {events} starts and stops)\n")
    row("", "p50", "p99", "goal")
    ours = lags["portcall"]
    for what, name, goal in (
        ("start -> registered", "start", "10, 50 ms"),
        ("stop signal -> gone", "stop", "10 ms"),
    ):
        for who, lag in lags.items():
            samples = getattr(lag, name)
            p50, p99 = at(samples, 0.5), at(samples, 0.99)
            times = "" if lag is ours else f"{p50 / at(getattr(ours, name), 0.5):.0f} x"
            row(f"{who}: {what}", f"{p50:.1f} ms", f"{p99:.1f} ms", goal if lag is ours else times)


def show_many(count: int, rounds: int, looks: int) -> None:
    sent = bodies(filled(count))
    ours: list[Many] = []
    alone: dict[int, list[tuple[float, float]]] = {connections: [] for connections in CONNECTIONS}
    turns: list[Callable[[], object]] = [lambda: ours.append(measure_many(count, looks))]
    turns += [
        lambda connections=connections, taken=taken: taken.append(measure_alone(sent, connections))
        for connections, taken in alone.items()
    ]
    for _ in range(rounds):
        for turn in turns:
            turn()
    middle = {
        name: statistics.median(getattr(one, name) for one in ours)
        for name in ("seconds", "processor", "consul", "look", "writes", "memory")
    }
    best = min(statistics.median(seconds for seconds, _ in taken) for taken in alone.values())
    print(f"\n{count} containers behind a fake Docker API, median of {rounds} rounds\n")
    row("", "measured", "goal", "")
    row("first sync, from the start of the process", *against(middle["seconds"], 2, "s"))
    for connections, taken in alone.items():
        seconds, consul = (statistics.median(column) for column in zip(*taken, strict=True))
        noun = "connection" if connections == 1 else "connections"
        row(f"  Consul alone, {connections} plain {noun}", f"{seconds:.1f} s")
        row("    of which Consul's processor time", f"{consul:.1f} s")
    row("  first sync / the fastest of those", f"{middle['seconds'] / best:.1f} x")
    row("  the registrar's processor time", f"{middle['processor']:.1f} s")
    row("  Consul's processor time", f"{middle['consul']:.1f} s")
    row("a look when nothing has changed, processor", *against(middle["look"], 100, "ms"))
    row("  writes that it makes", *against(middle["writes"], 0, ""))
    row("resident memory", *against(middle["memory"], 60, "MiB"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--containers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="with all containers")
    parser.add_argument("--events", type=int, default=50, help="starts and stops")
    parser.add_argument("--smoke", action="store_true", help="a few of each, to see that it runs")
    options = parser.parse_args()
    absent = []
    looks, binary = 20, ""
    if options.smoke:
        options.containers, options.rounds, options.events, looks = 50, 1, 3, 2
        absent.append("--smoke: no real dockerd and no Registrator")
    else:
        binary, why = find_peer()
        absent += [f"Registrator: {why}"] * bool(why)
        absent += [why] * bool(why := without_dockerd())
    try:
        kind = ".".join(map(str, ConsulAgent(binary=consul_bin()).version))
        print(f"real Consul {kind}, {os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")
    except FileNotFoundError as exc:
        print("the embedded agent in place of Consul")
        absent.append(f"Consul: {str(exc).splitlines()[-1]}")
    show_latency(options.events, not (options.smoke or without_dockerd()), binary)
    show_many(options.containers, options.rounds, looks)
    print()
    for sentence in absent:
        print(textwrap.fill(f"left out: {sentence}", 100, subsequent_indent="  ", break_on_hyphens=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())

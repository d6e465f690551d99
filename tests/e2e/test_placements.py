"""`discovery.lookup` wherever a program may run: it finds the same instances, and follows them.

    on the host                             the host's agent
    in a container, --dns alone             the host's agent, at the default gateway
    ... of an agent for the host alone      the resolver on docker0
    in a container with CONSUL_HTTP_ADDR    that agent

The program is the same in all places, and knows nothing of them.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.view import RESOLVER, SERVICE, Endpoint, endpoint
from tests.tools import wait_until

if TYPE_CHECKING:
    from lab import Host

FOLLOWS = {"http": 1.0, "dns": 2.0}
"""Seconds from `docker stop` to lookups without the instance, by docs/client.md: a second for the registry,
and another one where that is known from DNS."""

PROGRAM = f"""
import json, time
import discovery

said = None
while True:
    picks = [discovery.lookup("{SERVICE}") for _ in range(4)]
    seen = sorted({{(*pick, pick.source, pick.stale) for pick in picks}})
    if seen != said:
        print(json.dumps([time.monotonic(), seen]), flush=True)
        said = seen
    time.sleep(0.005)
"""
# Linux's monotonic clock is one for all processes: theirs and ours.

Said = list[tuple[float, dict[Endpoint, str]]]
"""When a program saw which instances, from which source."""


class Program:
    """The program above, running somewhere; `output` returns what it has printed."""

    def __init__(self, output: Callable[[], str]) -> None:
        self._output = output

    def said(self) -> Said:
        rows: list[Any] = [json.loads(line) for line in self._output().splitlines() if line.endswith("]]]")]
        assert not any(stale for _, seen in rows for *_, stale in seen), rows
        return [(at, {Endpoint(host, port): source for host, port, source, _ in seen}) for at, seen in rows]

    def saw(self, instances: frozenset[Endpoint]) -> tuple[float, dict[Endpoint, str]] | None:
        """The last thing it said, if that is *instances*."""
        said = self.said()
        return said[-1] if said and said[-1][1].keys() == instances else None


@pytest.fixture
def run_on_host(host3: Host, python: str) -> Iterator[Callable[[], Program]]:
    with ExitStack() as stack:

        def run() -> Program:
            log = host3.directory / "placement.log"
            log.unlink(missing_ok=True)
            host3.spawn("placement", "env", "-i", python, "-c", PROGRAM)
            stack.callback(host3.stop, "placement")
            return Program(log.read_text)

        yield run


@pytest.fixture
def run_in_container(host3: Host) -> Callable[..., Program]:
    """Run it in a container with these options of `docker run`; the next test's repairs remove it."""

    def run(*options: str) -> Program:
        container = host3.docker(
            "run", "--detach", *options, "--entrypoint", "python3", "portcall", "-c", PROGRAM
        )
        return Program(lambda: host3.docker("logs", container, stderr=True))

    return run


@contextmanager
def gateway_port_8500(host: Host, *fate: str) -> Iterator[None]:
    """Let what containers send to the agent at their default gateway meet its *fate*."""
    rule = ["INPUT", "-i", "docker0", "-d", RESOLVER, "-p", "tcp", "--dport", "8500", "-j", *fate]
    host.on("iptables", "-I", *rule)
    try:
        yield
    finally:
        host.on("iptables", "-D", *rule)


def check(program: Program, host1: Host, services: frozenset[Endpoint], source: str) -> None:
    """It finds both instances, learns from *source*, and follows when the one on host-1 stops and starts."""
    _, seen = wait_until(lambda: program.saw(services), 20, message=f"both are found: {program.said()}")
    assert set(seen.values()) == {source}
    gone = endpoint(host1, "service1")
    asked = time.monotonic()
    stopping = subprocess.Popen(["docker", "stop", "service1"], env=host1.docker_environment)
    took = math.inf
    try:
        left = services - {gone}
        at, seen = wait_until(lambda: program.saw(left), 15, message=f"it follows: {program.said()}")
        took = at - asked
    finally:
        assert stopping.wait(30) == 0
        print(f"from {source} it knew after {took:.3f} s")  # for `pytest -rP`
    assert took <= FOLLOWS[source], program.said()
    assert set(seen.values()) == {source}
    host1.docker("start", "service1")
    wait_until(lambda: program.saw(services), 15, message=f"it follows back: {program.said()}")


def test_on_the_host(run_on_host, host1: Host, services: frozenset[Endpoint]) -> None:
    check(run_on_host(), host1, services, "http")


def test_in_a_container_with_the_resolver_and_nothing_else(
    run_in_container, host1: Host, services: frozenset[Endpoint]
) -> None:
    check(run_in_container("--dns", RESOLVER), host1, services, "http")


@pytest.mark.parametrize(
    "fate", [("REJECT", "--reject-with", "tcp-reset"), ("DROP",)], ids=["refused", "silent"]
)
def test_in_a_container_that_reaches_the_resolver_alone(
    run_in_container, host1: Host, host3: Host, services: frozenset[Endpoint], fate: tuple[str, ...]
) -> None:
    with gateway_port_8500(host3, *fate):
        check(run_in_container("--dns", RESOLVER), host1, services, "dns")


def test_in_a_container_that_is_told_the_agent(
    run_in_container, host1: Host, host2: Host, host3: Host, services: frozenset[Endpoint]
) -> None:
    with gateway_port_8500(
        host3, "REJECT"
    ):  # another host's agent: what is told is asked, and nothing is guessed
        program = run_in_container("--env", f"CONSUL_HTTP_ADDR={host2.address}:8500")
        check(program, host1, services, "http")

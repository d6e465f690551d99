"""A registry that misbehaves in every way it can: last-known answers, never a wrong "no such name"."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import dns.rcode
import pytest

from discovery.agent import Agent
from discovery.config import Config
from resolver.server import Resolver
from tests.discovery.rawserver import answer
from tests.discovery.resilience.meddler import NO_LEADER, REFUSED, SLOW_DOWN, Meddler
from tests.resolver.conftest import Start, addresses, ask
from tests.resolver.test_server import deregister, errors_of, register
from tests.tools import ConsulAgent, wait_until

STALE = [3]  # RFC 8914
CANNOT_ASK = {22, 23}
NAME = "web.service.consul"
IMPATIENT = Config(wait=0.5)
"""A blocking read that is overdue is what shows that a registry hangs; not for as long as usual."""
PATIENCE = 30.0  # s; it is overdue after 5.5 s
FAULTS = {
    "403": REFUSED,
    "429": SLOW_DOWN,
    "no leader": NO_LEADER,
    # A server that has just started may answer before it has loaded anything.
    "leaderless and empty": answer(b"{}", headers="X-Consul-Index: 1\r\nX-Consul-KnownLeader: false\r\n"),
    "no Consul": answer(b"<html>It works!</html>"),
    "HTTPS is spoken": answer(b"Client sent an HTTP request to an HTTPS server.", "400 Bad Request"),
    "another program": answer(b"404 page not found", "404 Not Found"),
    "hanging": b"",
}


@pytest.fixture
def meddler(agent: Agent) -> Iterator[Meddler]:
    with Meddler(agent.http[1]) as meddler:
        yield meddler


def codes(resolver: Resolver, *names: str) -> dict[str, str]:
    """The rcode of each name; a failure has to say that the registry is its reason."""
    found = {}
    for name in names:
        message = ask(resolver, name, use_edns=0)
        if message.rcode() == dns.rcode.SERVFAIL:
            assert set(errors_of(message)) <= CANNOT_ASK
        found[name] = dns.rcode.to_text(message.rcode())
    return found


OTHERS = (
    "api.service.consul",
    "nope.service.consul",
    "nope.node.consul",
    "web.connect.consul",
    "q.query.consul",
)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_is_known_outlives_the_fault_and_nothing_is_denied(
    agent: Agent, meddler: Meddler, start_resolver: Start, fault: bytes
) -> None:
    register(agent, "w1", "10.0.0.1")
    register(agent, "a1", "10.0.0.7", name="api")
    resolver = start_resolver(f"consul://127.0.0.1:{meddler.port}", config=IMPATIENT)
    assert addresses(ask(resolver, NAME)) == ["10.0.0.1"]
    meddler.break_with(fault)
    wait_until(lambda: errors_of(ask(resolver, NAME, use_edns=0)) == STALE, PATIENCE)
    wait_until(
        lambda: codes(resolver, "nope.service.consul") == {"nope.service.consul": "SERVFAIL"}, PATIENCE
    )
    assert codes(resolver, *OTHERS) == dict.fromkeys(OTHERS, "SERVFAIL")
    assert addresses(ask(resolver, NAME)) == ["10.0.0.1"]
    assert ask(resolver, NAME, "AAAA").rcode() == dns.rcode.NOERROR

    register(agent, "w2", "10.0.0.2")
    deregister(agent, "w1")
    meddler.mend()
    wait_until(lambda: addresses(ask(resolver, NAME)) == ["10.0.0.2"], PATIENCE, message="it is fresh again")
    wait_until(
        lambda: codes(resolver, "nope.service.consul") == {"nope.service.consul": "NXDOMAIN"}, PATIENCE
    )
    wait_until(lambda: not errors_of(ask(resolver, NAME, use_edns=0)), PATIENCE)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_with_nothing_known_every_name_is_a_temporary_failure(
    agent: Agent, meddler: Meddler, start_resolver: Start, fault: bytes
) -> None:
    register(agent, "w1", "10.0.0.1")
    meddler.fault = fault
    resolver = start_resolver(f"consul://127.0.0.1:{meddler.port}", config=IMPATIENT)
    assert codes(resolver, NAME, *OTHERS) == dict.fromkeys((NAME, *OTHERS), "SERVFAIL")
    meddler.mend()
    wait_until(
        lambda: addresses(ask(resolver, NAME)) == ["10.0.0.1"], PATIENCE, message="and then it is known"
    )


def test_an_agent_that_stands_still_is_found_out(
    start_consul: Callable[..., ConsulAgent], start_resolver: Start
) -> None:
    """Its connections stay open: that a blocking read is overdue is the only sign."""
    consul = start_consul()
    consul.request("PUT", "/v1/agent/service/register", {"Name": "web", "Address": "10.0.0.1"})
    resolver = start_resolver(consul.uri, config=IMPATIENT)
    wait_until(lambda: addresses(ask(resolver, NAME)) == ["10.0.0.1"])
    os.kill(consul.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: errors_of(ask(resolver, NAME, use_edns=0)) == STALE, PATIENCE)
        assert addresses(ask(resolver, NAME)) == ["10.0.0.1"]
        # The read of the names may have begun later, and is overdue later.
        wait_until(
            lambda: codes(resolver, "nope.service.consul") == {"nope.service.consul": "SERVFAIL"}, PATIENCE
        )
    finally:
        os.kill(consul.pid, signal.SIGCONT)
    wait_until(lambda: not errors_of(ask(resolver, NAME, use_edns=0)), PATIENCE, message="it is fresh again")

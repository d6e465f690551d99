"""Fixtures for every suite; the classes behind them are in tests/tools."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.tools import ConsulAgent, consul_bin, missing

# Without these a client with nothing but the environment's settings asks the machine's name servers, and
# answers from what another test wrote down. A test that is about them says so itself.
os.environ.update(DISCOVERY_DNS="off", DISCOVERY_CACHE="off", DISCOVERY_SHARE="off")

# A shell starts what it leaves in the background with SIGINT and SIGQUIT ignored, and nohup ignores SIGHUP.
# Everything started from here would inherit that: the tests that end a program so would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)
for ignored in (signal.SIGQUIT, signal.SIGHUP):
    signal.signal(ignored, signal.SIG_DFL)


@pytest.fixture(scope="session")
def consul_executable() -> str:
    """The path of a Consul executable; without one the test is skipped or fails, as `missing` decides."""
    try:
        return consul_bin()
    except FileNotFoundError as exc:
        missing(str(exc))


@pytest.fixture(scope="session")
def shared_consul(consul_executable: str) -> Iterator[ConsulAgent]:
    """One dev agent for the whole session; ask for `consul_agent` instead, which is the same one, emptied."""
    with ConsulAgent(binary=consul_executable) as agent:
        yield agent


@pytest.fixture
def consul_agent(shared_consul: ConsulAgent) -> Iterator[ConsulAgent]:
    """A real Consul agent with no services. It is shared: to stop or restart one, take `start_consul`."""
    yield shared_consul
    shared_consul.clear()


@pytest.fixture
def start_consul(consul_executable: str) -> Iterator[Callable[..., ConsulAgent]]:
    """Start a Consul agent of the test's own (arguments: ConsulAgent's), stopped when the test ends."""
    with ExitStack() as agents:

        def start(**options: object) -> ConsulAgent:
            return agents.enter_context(ConsulAgent(binary=consul_executable, **options))  # type: ignore[arg-type]

        yield start

"""A registry for the client's tests: the embedded agent, on a port of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from discovery.agent import Agent
from discovery.backends import Backend, open_backend
from discovery.client import Client
from discovery.config import Config, ConsulConfig
from discovery.model import Check, CheckID, Registration, ServiceID, ServiceName, Status

# How long an example takes says more about what else the machine does than about the code.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever registry the person who runs the tests uses is not asked.

    Nor are the machine's name servers, and no test reads what another one left on disk or in memory.
    """
    for name in list(os.environ):
        if name.startswith(("CONSUL_", "DISCOVERY_")) and name != "CONSUL_BIN":
            monkeypatch.delenv(name)
    for name in ("DISCOVERY_DNS", "DISCOVERY_CACHE", "DISCOVERY_SHARE"):
        monkeypatch.setenv(name, "off")


@pytest.fixture(autouse=True)
def log_level_as_it_was() -> Iterator[None]:
    """The command sets it for its process; here that is everybody's."""
    log = logging.getLogger("discovery")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture
def agent() -> Iterator[Agent]:
    with Agent(http=("127.0.0.1", 0)) as agent:
        yield agent


@pytest.fixture
def registry(agent: Agent) -> Iterator[Backend]:
    """The agent's write side."""
    backend = open_backend(agent.uri, Config())
    yield backend
    backend.close()


@pytest.fixture
def connect(agent: Agent) -> Iterator[Callable[..., Client]]:
    """Make clients of the agent, which are closed when the test ends."""
    made: list[Client] = []

    def make(**settings: object) -> Client:
        config = Config(consul=ConsulConfig().at(agent.uri, origin="the test"))
        made.append(Client(config, **settings))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(connect: Callable[..., Client]) -> Client:
    return connect(timeout=5.0)


@pytest.fixture
def register(registry: Backend) -> Callable[..., str]:
    """Register an instance on 127.0.0.1 and return its id, `<name>-<port>`."""

    def add(
        name: str, port: int, *, address: str = "127.0.0.1", status: Status = "passing", **more: object
    ) -> str:
        identity = f"{name}-{port}"
        check = Check(CheckID(f"check-{identity}"), f"check of {identity}", ttl=600.0, initial_status=status)
        registration = Registration(
            ServiceID(identity), ServiceName(name), port, address, checks=(check,), **more
        )
        registry.register(registration)
        return identity

    return add
